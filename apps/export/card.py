"""The model card of an export: what it is, how to load it, what it was trained on, and what it scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache

from apps.trained_run import TrainedRun
from configs.schema import Base, Stage
from data.sources.reading import is_local
from pipeline.state.manifest import Manifest
from pipeline.terminal.summary import key_metrics
from stages.models.base import model_folder
from stages.models.demo_models import EMBEDDED

LICENCES = {"smollm2-135m-instruct": "apache-2.0"}  # of embedded models, which have no card
# What embedded models were made of. Their weights are others: no command may load these in their place.
MADE_OF = {"smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}
UNKNOWN = "unknown; see the base model"
WHAT = {
    "sft": "a policy, fine-tuned on demonstrations (SFT)",
    "ppo": "a policy, trained by PPO against a reward model",
    "rm": "a reward model, trained on rankings",
}
LIMITS = """It does what its data taught it, and has the base model's faults. A reward model is a proxy: text
far from its training samples can score high and be bad. The figures hold for prompts like those of the data.
Nothing here measures safety, facts or other languages."""


def base_name(base: Base) -> str:
    """The base's id on the hub, the name of its folder, or that of the embedded model."""
    return Path(base.model).name if Path(base.model).is_dir() else base.model


def base_licence(base: Base) -> str:
    """The licence that the base's own card names."""
    if base.model in EMBEDDED:
        return LICENCES.get(base.model, UNKNOWN)
    card = Path(model_folder(base)) / "README.md"
    if not card.is_file() and not Path(base.model).is_dir():
        found = try_to_load_from_cache(base.model, "README.md", revision=base.revision)
        card = Path(found) if isinstance(found, str) else card
    try:
        data = ModelCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True).data
    except (OSError, ValueError):
        return UNKNOWN
    return str(data.get("license") or UNKNOWN)


def card(run: TrainedRun, stage: Stage, use: str, library: str | None, exactness: Sequence[str]) -> str:
    """The text of `README.md`.

    Args:
        use: how to load this export, in Markdown.
        library: that loads it, as the hub names it.
        exactness: sentences on how far the export is from what was trained.
    """
    config, base, manifest = run.config, run.config.base_of(stage), run.require(stage)
    return "\n\n".join(
        [
            _front_matter(base, stage, library),
            f"# {config.name}: {stage}",
            f"This is {WHAT[stage]}: {'DoRA' if config.adapter.dora else 'LoRA'} of rank {config.adapter.r} "
            f"over `{base_name(base)}` (revision {base.revision or 'default'}), which was quantized as "
            f"`{base.quantization}` in training. Made with Tristage.",
            f"## Use\n\n{use}",
            "## How exact the export is\n\n" + "\n".join(f"- {sentence}" for sentence in exactness),
            f"## What it scored\n\n{_metrics(run)}",
            f"## What it was trained on\n\n{_data(run)}",
            f"## Lineage\n\n{_lineage(stage, manifest)}",
            f"## Limits\n\n{LIMITS}",
            f"## Licence\n\nThat of the base: {base_licence(base)}. The training data may add conditions.",
        ]
    )


def _front_matter(base: Base, stage: Stage, library: str | None) -> str:
    licence = base_licence(base)
    lines = [f"base_model: {MADE_OF.get(base.model, base_name(base))}"]
    lines += [f"library_name: {library}"] if library else []
    lines += [f"license: {licence}"] if licence != UNKNOWN else []
    pipeline = "text-classification" if stage == "rm" else "text-generation"
    return "\n".join(["---", *lines, f"pipeline_tag: {pipeline}", f"tags: [rlhf, tristage, {stage}]", "---"])


def _metrics(run: TrainedRun) -> str:
    """The key metrics of every finished stage, with 95 % intervals and the number of prompts."""
    rows = [
        f"| {stage} | {label} | {value} |"
        for stage, manifest in run.manifests.items()
        for label, value in key_metrics(manifest).items()
    ]
    return "\n".join(["| stage | figure | value |", "|---|---|---|", *rows])


def _data(run: TrainedRun) -> str:
    """The sources of each finished stage. Of a path only its end: it could tell more than its owner wants."""
    lines = []
    for stage, manifest in run.manifests.items():
        names = []
        for part in run.config.data.parts(stage):
            digest = manifest.sources.get(f"{part.key}.path")
            path = part.source.path
            names.append(
                f"`{Path(path).name if is_local(part.source) else path}`"
                + (f" (SHA-256 {digest[:16]})" if digest else "")
            )
        lines.append(f"- {stage}: {', '.join(names)}, {manifest.metrics.get('steps', 0):g} steps")
    rankings = run.config.rm.rankings
    by = f"by `{rankings.labelled_by}`" if rankings.labellers else "from the file"
    lines.append(f"- rankings: {by}")
    return "\n".join(lines)


def _lineage(stage: Stage, manifest: Manifest) -> str:
    adapter = manifest.output.sha256 if manifest.output else ""
    lines = [f"- adapter of {stage}: SHA-256 `{adapter}`, run `{manifest.run_id}`"]
    lines += [f"- from {name}: SHA-256 `{upstream.sha256}`" for name, upstream in manifest.inputs.items()]
    lines += [f"- {key}, which it starts from: SHA-256 `{d}`" for key, d in manifest.given_adapters.items()]
    lines += [f"- base: `{manifest.base_digest}`"]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    return "\n".join([*lines, f"- configuration: SHA-256 `{manifest.config_hash}`", f"- {versions}"])
