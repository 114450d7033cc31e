"""docs/reading/metrics.md has every key that a stage logs, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_stub import chat_stub
from tests.support.runs import ROOT, run_stage

PAGE = (ROOT / "docs" / "reading" / "metrics.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
TITLES = {  # of the sections about a stage
    ("sft", "steps"): "(Every stage|SFT), each step",
    ("rm", "steps"): "(Every stage|Reward model), each step",
    ("ppo", "steps"): "Every stage, each step|PPO: .*",
    ("sft", "final"): "Final figures of (every stage|SFT)",
    ("rm", "final"): "Final figures of (every stage|the reward model)",
    ("ppo", "final"): "Final figures of (every stage|PPO)",
    ("best", "final"): "Final figures of (every stage|best-of-n)",
}
ROW = re.compile(r"^\| `([^`]+)` \| (.*) \|$", re.MULTILINE)
INTERVAL = ("low", "high", "n")  # what a mean with an interval has, too
LABELS = ("rm", "brevity")  # of the terms of the reward in the runs below
JUDGED = "ppo.judge=warmth"
ENSEMBLE = "rm.members=2"
RARE = {"people", "prompts_skipped", "temperature"}  # of people, and of a model that a temperature mends
LEFT_OUT = {"rows_unusable", "rows_tied", "rows_unwanted"}  # none in the runs below; see test_mixture.py
RUNS: dict[str, list[tuple[str, ...]]] = {
    "sft": [("sft.group_by_length=true",)],
    "rm": [
        ("rm.group_by_length=true",),
        ("rm.rankings.rollout={max_new_tokens: 8}", "data.rm.limit=12"),
        (
            "rm.rankings.rollout={max_new_tokens: 8}",
            "data.rm.limit=12",
            f"rm.rankings.labeller={__name__}:length",
        ),
        (ENSEMBLE,),
    ],
    "ppo": [
        (
            *(
                f"ppo.judge={__name__}:judge_in_parts",
                "ppo.ptx_coef=0.1",
                "ppo.entropy_coef=0.01",
                "ppo.rollout.top_k=20",
                ENSEMBLE,
            ),
            f"ppo.rewards=[{{source: rm}}, {{source: '{__name__}:negative_length', name: brevity}}]",
        ),
        (ENSEMBLE, "ppo.kl_in=loss", "ppo.kl_estimator=k3"),
        (ENSEMBLE, "ppo.from=RUN/sft/adapter", "ppo.reference=from", "ppo.rollout.top_k=20"),
    ],
    "best": [(ENSEMBLE, JUDGED, "best.n=2")],
}


def negative_length(prompts: list[str], completions: list[str]) -> list[float]:
    return [-float(len(completion)) for completion in completions]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def judge_in_parts(prompts: list[str], completions: list[str]) -> list[dict[str, float]]:
    return [{"score": -len(completion), "letters": len(completion)} for completion in completions]


def longer(body: dict[str, Any]) -> str:
    _, a, b = body["messages"][0]["content"].split("<|>")
    return "A" if len(a) > len(b) else "B"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The option by which a function and a judge, whose replies have a price, rank together."""
    file = tmp_path_factory.mktemp("judge") / "judge.yaml"
    with chat_stub(longer) as stub:
        template, price = "{prompt}<|>{a}<|>{b}", "{input: 1, output: 1}"
        file.write_text(f"url: {stub.url}\nmodel: m\nprice: {price}\ntemplate: '{template}'")
        yield f"rm.rankings.labeller={{agree: ['{__name__}:length', {file}]}}"


@pytest.fixture(scope="module")
def logged(judged: str, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], set[str]]:
    """The keys of `metrics.jsonl` ("steps") and of the manifest ("final") by stage, over all of RUNS."""
    run_dir = tmp_path_factory.mktemp("run")
    keys: dict[tuple[str, str], set[str]] = {}
    RUNS["rm"][1] = (*RUNS["rm"][1], judged)
    for stage, options in RUNS.items():
        for overrides in options:
            run_stage(stage, run_dir, *(text.replace("RUN", str(run_dir)) for text in overrides))
            steps = _rows(run_dir / stage / "metrics.jsonl")
            final = json.loads((run_dir / stage / "manifest.json").read_text())["metrics"]
            keys.setdefault((stage, "steps"), set()).update(*steps)
            keys.setdefault((stage, "final"), set()).update(final)
    return keys


def _rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def documented(stage: str, kind: str) -> set[str]:
    """The keys that the page has for `stage`, in the sections of all stages and in its own."""
    keys = set()
    for title, text in SECTION.findall(PAGE):
        if re.fullmatch(TITLES[stage, kind], title):
            for key, about in ROW.findall(text):
                keys |= {key} | ({f"{key}_{end}" for end in INTERVAL} if "with interval" in about else set())
    return keys


def _general(key: str) -> str:
    """The key with LABEL in place of a term's label, and PART in place of the judge's part."""
    key = re.sub(r"accuracy_member_\d", "accuracy_member_N", key.replace("gold_letters", "gold_PART"))
    for label in LABELS:
        key = re.sub(
            rf"(?<=rewards/){label}(?!/disagreement)|^{label}(?=_score_sft|_score_ppo|_win_rate)",
            "LABEL",
            key,
        )
    return key


@pytest.mark.parametrize("kind", ["steps", "final"])
@pytest.mark.parametrize("stage", RUNS)
def test_every_logged_key_is_on_the_page_and_no_other(
    logged: dict[tuple[str, str], set[str]], stage: str, kind: str
) -> None:
    keys = logged[stage, kind]
    if stage == "best" and kind == "steps":
        assert not keys, "best-of-n has no steps"
        return
    found = {_general(key) if stage in ("rm", "ppo") else key for key in keys}
    rare = (LEFT_OUT if kind == "final" else set()) | (RARE if (stage, kind) == ("rm", "final") else set())
    assert found - rare == documented(stage, kind) - rare
    assert rare <= documented(stage, kind)


def test_every_key_has_words_on_each_count() -> None:
    """What it is, a healthy value, and a remedy."""
    sections = [text for title, text in SECTION.findall(PAGE) if title != "In W&B only"]
    rows = [row for text in sections for row in ROW.findall(text)]
    assert len(rows) > 120
    for key, cells in rows:
        words = [cell.strip() for cell in cells.split("|")]
        assert all(words), key
