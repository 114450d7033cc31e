"""Stage rm with a judge behind an endpoint, and with two labellers: from first question to manifest."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from pipeline.reporting.report import write_report
from stages.feedback.endpoint_judge import TRIED
from tests.contract.bad_inputs.entry import check_message
from tests.support.chat_stub import USAGE, chat_stub
from tests.support.runs import RUN_STAGE, copy_upstream, run_stage, stage_arguments, start_warm

TEMPLATE = "template: '{prompt}<|>{a}<|>{b}'\n"
TRAINING, HELD_OUT = 8, 4
PROMPTS = TRAINING + HELD_OUT
LIMIT = (
    *(f"data.rm.limit={PROMPTS}", f"data.rm.held_out={HELD_OUT}"),
    *("rm.rankings.rollout={max_new_tokens: 8}", "rm.max_steps=1", "rm.normalization_prompts=2"),
)


def longer(body: dict[str, Any]) -> str:
    """Prefers the longer answer."""
    _, a, b = body["messages"][0]["content"].split("<|>")
    return "A" if len(a) > len(b) else "B" if len(a) < len(b) else "A = B"


def judge_file(folder: Path, url: str, more: str = "") -> Path:
    file = folder / "judge.yaml"
    file.write_text(f"url: {url}\nmodel: m\nretries: 0\n{TEMPLATE if 'mode' not in more else ''}{more}")
    return file


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A run directory in which sft has finished."""
    return copy_upstream(trained_run, "rm", tmp_path / "run")


def rankings(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rm/rankings.jsonl").read_text().splitlines()]


def metrics(run: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((run / "rm/manifest.json").read_text())["metrics"]
    return figures


def most_questions(rows: list[dict[str, Any]]) -> int:
    """Two for each pair of different answers."""
    return sum(len(list(permutations(set(row["completions"]), 2))) for row in rows)


def test_a_judge_ranks_pairs_and_its_cost_is_counted(run: Path, tmp_path: Path) -> None:
    with chat_stub(longer) as stub:
        file = judge_file(tmp_path, stub.url, "price: {input: 0.5, output: 1.5}\n")
        said = run_stage("rm", run, f"rm.rankings.labeller={file}", *LIMIT).stdout
    rows, figures = rankings(run), metrics(run)
    assert len(rows) == PROMPTS and all("scores" not in row for row in rows)
    for row in rows:
        assert [len(text) for text in row["completions"]] == sorted(
            map(len, row["completions"]), reverse=True
        )
        assert all(
            (a < b) == (len(one) > len(other))
            for one, a in zip(row["completions"], row["ranks"], strict=True)
            for other, b in zip(row["completions"], row["ranks"], strict=True)
        )
    tried, *asked = stub.questions  # before anything trains
    assert tried == "<|>".join((TRIED[0], *TRIED[1]))
    assert len(asked) == len(set(asked)) == most_questions(rows) == figures["judge_requests"]
    assert figures["judge_prompt_tokens"] == USAGE["prompt_tokens"] * len(asked)
    assert figures["judge_cost"] == pytest.approx(len(asked) * (10 * 0.5 + 2 * 1.5) / 1e6)
    assert "judge.yaml: " in said and "0 replies were unreadable" in said
    assert {path.name for path in (run / "rm").glob("*.json*")} >= {"labels.json", "judge-cache.jsonl"}
    assert not (run / "rm/sampled.jsonl").exists()
    page = write_report(run).read_text()
    assert "ranked by judge.yaml, best first" in page and "requests to the judge" in page
    # A changed template means changed labels; a changed timeout does not.
    judge_file(tmp_path, stub.url, "timeout_seconds: 5\n")
    assert (
        "finished with this configuration"
        in run_stage("rm", run, f"rm.rankings.labeller={file}", *LIMIT).stdout
    )
    judge_file(tmp_path, stub.url, "max_tokens: 20\n")
    said = run_stage("rm", run, f"rm.rankings.labeller={file}", *LIMIT, status=2).stdout
    check_message(said, "rm.rankings.labeller: ", "gave no verdict (ConnectionError")  # the stub is gone


def test_after_a_kill_only_requests_in_flight_are_asked_again(run: Path, tmp_path: Path) -> None:
    alive = False

    def kills_the_stage(body: dict[str, Any]) -> str:
        if not alive and len(stub.bodies) == 30:
            os.kill(json.loads((run / "rm/manifest.json").read_text())["process"]["pid"], signal.SIGKILL)
            time.sleep(0.5)
        return longer(body)

    with chat_stub(kills_the_stage) as stub:
        arguments = (f"rm.rankings.labeller={judge_file(tmp_path, stub.url, 'concurrency: 4')}", *LIMIT)
        run_stage("rm", run, *arguments, status=-signal.SIGKILL)
        kept = len((run / "rm/judge-cache.jsonl").read_text().splitlines())
        sampled = (run / "rm/sampled.jsonl").read_bytes()
        asked, alive = Counter(stub.questions[1:]), True
        assert kept >= len(asked) - 4 > 20
        first = len(stub.bodies)
        run_stage("rm", run, *arguments)
    rows = rankings(run)
    again = asked & Counter(stub.questions[first + 1 :])
    assert sum(again.values()) == len(asked) - kept <= 4
    assert len(stub.questions) - 2 == most_questions(rows) + sum(again.values())
    assert metrics(run)["judge_requests"] == most_questions(rows)
    ids = {str(sorted(json.loads(line)["completion_ids"])) for line in sampled.decode().splitlines()}
    assert {str(sorted(row["completion_ids"])) for row in rows} == ids


def test_rankings_in_one_request(run: Path, tmp_path: Path) -> None:
    def longest_first(body: dict[str, Any]) -> str:
        shown = re.findall(r"^Answer ([A-Z]): (.*)", body["messages"][0]["content"], re.MULTILINE)
        return json.dumps([letter for letter, _ in sorted(shown, key=lambda each: -len(each[1]))])

    with chat_stub(longest_first) as stub:
        file = judge_file(tmp_path, stub.url, "mode: ranking")
        run_stage("rm", run, f"rm.rankings.labeller={file}", *LIMIT)
    assert len(stub.bodies) <= PROMPTS + 1
    assert metrics(run)["judge_unreadable"] == 0 and "judge_cost" not in metrics(run)
    for row in rankings(run):
        lines = [text.split("\n")[0] for text in row["completions"]]
        assert [len(line) for line in lines] == sorted(map(len, lines), reverse=True)


@pytest.mark.distributed
def test_two_ranks_get_the_same_rankings_and_ask_once(run: Path, tmp_path: Path, trained_run: Path) -> None:
    other = copy_upstream(trained_run, "rm", tmp_path / "other")
    with chat_stub(longer) as stub:
        arguments = (f"rm.rankings.labeller={judge_file(tmp_path, stub.url)}", *LIMIT)
        run_stage("rm", run, *arguments)
        alone = len(stub.bodies)
        done = start_warm([RUN_STAGE, *stage_arguments("rm", other, *arguments)], ranks=2)
        assert done.returncode == 0, done.stdout
    assert rankings(run) == rankings(other)
    assert len(stub.bodies) == 2 * alone


def about_as_long(prompts: list[str], completions: list[str]) -> list[float]:
    """Prefers longer answers, and does not count letters."""
    return [len(text) // 6 for text in completions]


def shorter(prompts: list[str], completions: list[str]) -> list[float]:
    return [-len(text) for text in completions]


def test_a_labeller_and_a_judge_agree_on_some(run: Path, tmp_path: Path) -> None:
    with chat_stub(longer) as stub:
        file = judge_file(tmp_path, stub.url)
        run_stage("rm", run, f"rm.rankings.labeller={{agree: ['{__name__}:about_as_long', {file}]}}", *LIMIT)
    figures, rows = metrics(run), rankings(run)
    assert 0.5 < figures["label_agreement"] < 1.0 and figures["label_agreement_n"] <= PROMPTS
    assert figures["label_prompts_dropped"] == PROMPTS - len(rows)
    assert figures["label_answers_dropped"] == 4 * PROMPTS - sum(len(row["ranks"]) for row in rows) > 0
    assert figures["judge_requests"] > 0
    for row in rows:
        lengths = [len(text) for text in row["completions"]]
        assert "scores" not in row and row["ranks"][-1] > 0
        assert lengths == sorted(lengths, reverse=True)
        assert all(  # both order each pair alike
            (row["ranks"][i] < row["ranks"][j])
            == (lengths[i] > lengths[j])
            == (lengths[i] // 6 > lengths[j] // 6)
            for i, j in permutations(range(len(lengths)), 2)
        )
    page = write_report(run).read_text()
    assert "about_as_long and judge.yaml, where they agree" in page and "As good as people agree" not in page


def test_labellers_that_never_agree_are_an_error(run: Path) -> None:
    both = [f"{__name__}:about_as_long", f"{__name__}:shorter"]
    said = run_stage("rm", run, f"rm.rankings.labeller={{agree: {both}}}", *LIMIT, status=2).stdout
    check_message(
        said.partition("error: ")[2],
        f"rm.rankings.labeller: {' and '.join(both)}, where they agree: nothing to train on is left: ",
        "of the pairs of a prompt alike (n = ",
        f"kept 0 of {4 * TRAINING} answers and 0 of {TRAINING} prompts. Name other labellers",
    )
    assert not (run / "rm/rankings.jsonl").exists()


def test_a_judge_is_tried_before_anything_trains(run: Path, tmp_path: Path) -> None:
    refusal = b'{"error": {"message": "Incorrect API key"}}'
    with chat_stub(lambda body: (401, refusal)) as stub:
        file = judge_file(tmp_path, stub.url)
        said = run_stage("rm", run, f"rm.rankings.labeller={file}", *LIMIT, status=2).stdout
    check_message(said, f"error: rm.rankings.labeller: {stub.url} gave no verdict (status 401: Incorrect API")
    assert len(stub.bodies) == 1 and not (run / "rm").exists()
