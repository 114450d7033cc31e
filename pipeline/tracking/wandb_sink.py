"""Weights & Biases: one group per experiment, one run per stage, adapters as artifacts with lineage."""

from __future__ import annotations

import json
import logging
import netrc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from configs.errors import UserError
from configs.schema import Experiment, Stage
from data.sources.messages import dialogue
from data.storage.files import read_json_lines
from pipeline.state.manifest import Manifest
from pipeline.tracking.reward_tables import reward_tables

# A signal to all processes may end W&B's before it reaches this one, which then knows why.
SIGNAL_SECONDS = 0.2
logger = logging.getLogger("tristage.wandb")

Mode = Literal["online", "offline"]
MODES: dict[str, Mode | Literal["disabled"]] = {
    "online": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
DEFAULT_HOST = "api.wandb.ai"  # the host that older versions of `wandb login` wrote to netrc
INIT_TIMEOUT_SECONDS = 60
FINISH_TIMEOUT_SECONDS = 120
SECONDS_PER_TABLE = 600.0
ROWS_PER_TABLE = 1000  # each upload of the table repeats all of its rows


def make_wandb_sink(
    config: Experiment, manifest: Manifest, folder: Path, stopping: Callable[[], bool] = lambda: False
) -> WandbSink | None:
    """Return the sink for one stage, or None if W&B is disabled or cannot start: tracking ends no stage.

    Args:
        stopping: whether a signal ends the stage.

    Raises:
        UserError: WANDB_MODE is not a known mode.
    """
    check_mode()
    try:
        with _temporary_files_in(folder / "wandb" / "tmp"):
            mode = wandb_mode(config)
            if mode == "disabled":
                return None
            _store_inside(folder)
            sink = WandbSink.start(config, manifest, folder, mode)
            sink.stopping = stopping
            return sink
    except Exception as error:  # a variable of W&B, its service, its folder; the files have everything
        logger.warning("W&B could not be started (%s); only files are written", " ".join(str(error).split()))
        return None


def wandb_mode(config: Experiment) -> Mode | Literal["disabled"]:
    """WANDB_MODE if it is set, else the configuration. `auto` is online if an API key is known."""
    if _is_disabled():
        return "disabled"
    check_mode()
    if mode := os.environ.get("WANDB_MODE"):
        return MODES[mode]
    if config.tracking.wandb != "auto":
        return config.tracking.wandb
    return "online" if _has_key() else "offline"


def check_mode() -> None:
    """Raise UserError if WANDB_MODE is set to an unknown mode."""
    mode = os.environ.get("WANDB_MODE")
    if mode and mode not in MODES and not _is_disabled():
        raise UserError(f"WANDB_MODE={mode:.40}: unknown; use one of {', '.join(MODES)}, or unset it.")


def _is_disabled() -> bool:
    return os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")


def _has_key() -> bool:
    """Whether the environment, W&B's settings or netrc have an API key.

    `wandb.login` would call the server. Without a network, the process would then not end. `wandb.setup`
    would start W&B's process, and wait for ever if it does not start.
    """
    import wandb

    settings = wandb.Settings()
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    if settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        hosts = netrc.netrc(str(file)).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return bool({urlsplit(str(settings.base_url)).netloc, DEFAULT_HOST} & set(hosts))


def _store_inside(folder: Path) -> None:
    """Make W&B keep its uploads and cache in the run's folder, not in the user's home."""
    for name, part in {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache"}.items():
        os.environ.setdefault(name, str(folder / "wandb" / part))


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Create temporary files in `folder`, after removing what a killed process left there.

    W&B creates two temporary folders at its import. It removes them when the process ends by itself.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        for path in (folder, folder.parent):
            with suppress(OSError):  # it is in use
                path.rmdir()


class WandbSink:
    """One W&B run. The metric `trainer/step` has the step, because W&B drops its own steps that go backwards.

    Tracking must not end training. After the first error of W&B, only files are written.

    Attributes:
        stopping: whether a signal ends the stage. A launcher that gets it ends W&B's process, too.
    """

    def __init__(self, run: Any, config: Experiment, folder: Path) -> None:
        self._run: Any | None = run
        self.stopping: Callable[[], bool] = lambda: False
        self._config = config
        self._samples, self._reward_report = folder / "samples.jsonl", folder / "evaluation.json"
        self._table_due = time.monotonic() + SECONDS_PER_TABLE

    @classmethod
    def start(cls, config: Experiment, manifest: Manifest, folder: Path, mode: Mode) -> WandbSink:
        """Begin or resume the run of a stage. It is offline if the server cannot be reached."""
        import wandb

        tracking = config.tracking
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_TIMEOUT_SECONDS,
            finish_timeout=FINISH_TIMEOUT_SECONDS,
            disable_git=True,
            save_code=False,
        )

        def begin(mode: Mode) -> Any:
            return wandb.init(
                mode=mode,
                id=manifest.run_id or None,
                resume="allow",
                project=tracking.project,
                entity=tracking.entity,
                group=tracking.group or config.name,
                job_type=manifest.stage,
                name=f"{config.name}-{manifest.stage}",
                tags=tracking.tags,
                config={**config.model_dump(mode="json"), "inputs": _lineage(manifest)},
                dir=str(folder),
                settings=settings,
                allow_val_change=True,
            )

        try:
            run = begin(mode)
        except Exception as error:  # of the server, the service or a setting, of many types
            logger.warning("W&B could not be started (%s); logging offline in %s", error, folder / "wandb")
            wandb.teardown()  # else its service reports that the run id is in use
            run = begin("offline")
        run.define_metric("trainer/step")
        run.define_metric("*", step_metric="trainer/step")
        sink = cls(run, config, folder)
        sink._guard(lambda run: sink._link_inputs(run, manifest))
        return sink

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._guard(lambda run: run.log({"trainer/step": step, **metrics}))

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Upload the table of samples every ten minutes. The file sink has already written `rows`."""
        if time.monotonic() >= self._table_due:
            self._guard(self._log_samples)
            self._table_due = time.monotonic() + SECONDS_PER_TABLE

    def rewind(self, step: int) -> None:
        """Do nothing. `trainer/step` is a metric, so W&B draws new points over old ones of the same step."""

    def finish(self, manifest: Manifest, output: Path) -> None:
        """Upload the final metrics, the report of a reward model and, if configured, the output."""

        def add(run: Any) -> None:
            run.summary.update({f"final/{name}": value for name, value in manifest.metrics.items()})
            if self._reward_report.exists():
                run.log(_charts(json.loads(self._reward_report.read_text(encoding="utf-8"))))
            if self._config.tracking.artifacts:
                self._log_output(run, manifest, output)

        self._guard(add)

    def close(self, exit_code: int) -> None:
        run = self._run
        self._guard(self._log_samples)
        self._run = run  # it ends even if W&B refuses the table
        self._guard(lambda run: run.finish(exit_code=exit_code))
        self._run = None
        _end_service(exit_code)

    def _log_samples(self, run: Any) -> None:
        """Upload the latest samples as one table, including those of earlier attempts."""
        import wandb

        rows = read_json_lines(self._samples, growing=True) if self._samples.exists() else []
        rows = rows[-ROWS_PER_TABLE:]
        if rows:
            columns = list(dict.fromkeys(name for row in rows for name in row))
            data = [[_cell(row.get(name)) for name in columns] for row in rows]
            run.log({"samples": wandb.Table(columns=[*columns], data=data)})

    def _log_output(self, run: Any, manifest: Manifest, output: Path) -> None:
        import wandb

        assert manifest.output is not None
        # W&B accepts 100 keys at most, and parts of a gold score add some for each policy.
        metadata = {
            "sha256": manifest.output.sha256,
            "inputs": _lineage(manifest),
            "metrics": manifest.metrics,
        }
        artifact = wandb.Artifact(
            _artifact_name(self._config, manifest.stage),
            type="dataset" if manifest.stage == "best" else "model",
            metadata=metadata,
        )
        artifact.add_dir(str(output))
        run.log_artifact(artifact, aliases=["latest", _alias(manifest.output.sha256)])

    def _link_inputs(self, run: Any, manifest: Manifest) -> None:
        """Link the adapters that this stage reads, if online. The configuration always has the lineage."""
        if run.offline or not self._config.tracking.artifacts:
            return
        import wandb

        for stage, used in manifest.inputs.items():
            name = f"{_artifact_name(self._config, stage)}:{_alias(used.sha256)}"
            try:
                run.use_artifact(name)
            except (wandb.Error, ValueError) as error:  # trained offline, or under another project
                logger.info("W&B has no artifact %s to link to (%s)", name, error)

    def _guard(self, action: Callable[[Any], object]) -> None:
        """Call `action` with the run. If W&B fails in any way, log it once and continue without W&B.

        A stage that is being stopped has its own message at the terminal, and no other.
        """
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # the service may be gone; the files have everything
            time.sleep(SIGNAL_SECONDS)
            level = logging.INFO if self.stopping() else logging.WARNING
            logger.log(level, "W&B failed (%s); from here on only files are written", error)
            self._run = None


def _cell(value: Any) -> Any:
    """A value in a table of W&B, which refuses a column of texts and lists."""
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], dict):
        return dialogue(value)
    return json.dumps(value, ensure_ascii=False)


def _charts(report: Mapping[str, Any]) -> dict[str, Any]:
    """A reward model's report as two charts, which have their tables, and a table."""
    import wandb

    tables = {name: wandb.Table([*rows.columns], rows.data) for name, rows in reward_tables(report).items()}
    return {
        "report/accuracy": wandb.plot.bar(
            tables["accuracy"], "pairs", "accuracy", "Accuracy by kind of pair"
        ),
        "report/reliability": wandb.plot.line(
            tables["reliability"], "confidence", "accuracy", title="Reliability"
        ),
        "report/mistakes": tables["mistakes"],
    }


def _end_service(exit_code: int) -> None:
    """End W&B's process now. A launcher that is being stopped would kill it before Python ends."""
    import wandb

    try:
        wandb.teardown(exit_code)
    except Exception as error:  # it has already ended
        logger.info("W&B's process could not be ended (%s)", error)


def _artifact_name(config: Experiment, stage: Stage) -> str:
    return f"{config.name}-{stage}-{'demonstrations' if stage == 'best' else 'adapter'}"


def _alias(digest: str) -> str:
    """An alias by content, so that a stage links to exactly the adapter that it read."""
    return f"sha256-{digest[:16]}"


def _lineage(manifest: Manifest) -> dict[str, dict[str, str]]:
    inputs = {stage: used.model_dump() for stage, used in manifest.inputs.items()}
    return inputs | {key: {"sha256": digest} for key, digest in manifest.given_adapters.items()}
