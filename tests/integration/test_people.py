"""From prompts to a reward model that trains on what people ranked: the command, the server, the stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from data.people.round import read_round
from data.storage.files import read_json_lines
from tests.support.labelling_page import CHROMIUM, card, chromium, opened, press, said, texts
from tests.support.people import Labeller
from tests.support.runs import ROOT, TINY, copy_upstream, environment, metrics, rows, run_stage

SHORT = "rm.rankings.rollout.max_new_tokens=16"
PEOPLE = ("rm.rankings.labeller=people", SHORT)


def tristage(*words: object, status: int = 0) -> str:
    """What a command prints. It must end with `status`."""
    done = subprocess.run(_command(words), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def _command(words: Sequence[object]) -> list[str]:
    return [
        sys.executable,
        "-P",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); " + MAIN,
        *map(str, words),
    ]


MAIN = "from launch.cli import main; sys.argv[0] = 'tristage'; sys.exit(main())"


@contextmanager
def serving(*words: object) -> Iterator[str]:
    """The URL of `tristage collect`, which ends by a signal and with status 0."""
    server = subprocess.Popen(
        _command(words), stdout=subprocess.PIPE, text=True, env=os.environ | environment()
    )
    assert server.stdout is not None
    lines = iter(server.stdout.readline, "")
    url = next(line.split()[1] for line in lines if line.startswith("open http://"))
    try:
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "stopped; rankings:" in rest


def rank_everything(url: str, name: str, ranks: Sequence[int]) -> int:
    """Rank all tasks that a person gets: an answer by its length, so that people may agree."""
    person, done = Labeller(url, name), 0
    while (task := person.next()) is not None:
        longest_first = sorted(task["answers"], key=len, reverse=True)
        given = [ranks[longest_first.index(answer)] for answer in task["answers"]]
        assert person.rank(task, given).status_code == 200
        done += 1
    return done


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose SFT is done, and whose rankings people are to give."""
    target = copy_upstream(trained_run, "rm", tmp_path_factory.mktemp("people") / "run")
    (target / "config.yaml").write_bytes((trained_run / "config.yaml").read_bytes())
    return target


@pytest.fixture(scope="module")
def ranked(run: Path) -> Path:
    """The same, ranked by two people who see all prompts. One ties what the other ranks first and second."""
    again = (
        "collect",
        "rankings",
        "--run-dir",
        run,
        "--overlap",
        1,
        "--again",
        0,
        "--port",
        0,
        "-n",
        16,
        SHORT,
    )
    waiting = tristage("run", "--config", TINY, "--run-dir", run, "--from", "rm", *PEOPLE, status=3)
    assert waiting.count("\n") == 1
    assert waiting.startswith(
        "stage rm waits for people, who have not been asked yet. Ask them: tristage collect"
    )
    with serving(*again) as url:
        assert rank_everything(url, "anna", [1, 2, 3, 4]) == 16
    with serving(*again) as url:  # the same command goes on
        assert rank_everything(url, "ben", [1, 1, 2, 3]) == 16
        assert Labeller(url, "ben").get("/api/progress").json()["missing"] == 0
    return run


def test_the_stage_trains_on_what_people_ranked(ranked: Path) -> None:
    run_stage("rm", ranked, *PEOPLE, "rm.max_steps=2")
    kept = read_json_lines(ranked / "rm/rankings.jsonl")
    assert len(kept) == 32 and {row["labeller"] for row in kept} == {"anna", "ben"}
    assert {row["split"] for row in kept} == {"train", "held_out"}
    for row in kept:
        best_first = zip(row["ranks"], map(len, row["completions"]), strict=True)
        assert all(length >= other for (rank, length), (worse, other) in pairwise(best_first) if rank < worse)
    found = metrics(ranked / "rm/manifest.json")
    assert found["people"] == 2 and found["prompts_skipped"] == 0
    # Of six pairs one is a tie of one person only: the agreement on each prompt with four answers is 5.5 / 6.
    assert found["label_agreement"] == pytest.approx(5.5 / 6, abs=0.02)
    assert found["label_agreement_n"] == 16
    assert found["accuracy_n"] >= 2


def test_the_stage_trains_on_merged_rankings(ranked: Path, tmp_path: Path) -> None:
    """A tie of one person is decided by the other."""
    target = tmp_path / "run"
    shutil.copytree(ranked, target, ignore=shutil.ignore_patterns("rm"))
    said = run_stage("rm", target, *PEOPLE, "rm.rankings.merge=bradley_terry", "rm.max_steps=2").stdout
    assert "merged 32 rankings by people into 16, one a prompt" in said
    kept = read_json_lines(target / "rm/rankings.jsonl")
    assert len(kept) == 16 and {row["labeller"] for row in kept} == {"anna, ben"}
    for row in kept:
        assert row["ranks"] == list(range(len(row["ranks"])))
        assert all(better > worse for better, worse in pairwise(row["scores"]))
    assert metrics(target / "rm/manifest.json")["label_agreement_n"] == 16


def test_what_the_stage_began_with_does_not_change(ranked: Path, tmp_path: Path) -> None:
    """A resumed stage keeps its rankings, and a round that goes on does not wait for anybody."""
    run_stage("rm", ranked, *PEOPLE, "rm.max_steps=2")
    plan = tristage("plan", "--config", TINY, "--run-dir", ranked, *PEOPLE, "rm.max_steps=2", "--until", "rm")
    assert "rm   skip" in plan


def test_collect_report_writes_agreement(ranked: Path) -> None:
    shown = tristage("collect", "report", "--run-dir", ranked)
    assert "rankings: 16 of 16 tasks labelled, 0 missing" in shown
    figures = json.loads((ranked / "people/rankings/report.json").read_text())
    assert figures["agreement"]["pairwise"]["value"] == pytest.approx(5.5 / 6, abs=0.02)
    assert figures["agreement"]["alpha"]["low"] <= figures["agreement"]["alpha"]["value"] <= 1
    assert {person["done"] for person in figures["people"]} == {16}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.mark.skipif(not CHROMIUM, reason="no program `chromium` is on PATH")
def test_from_prompts_to_a_reward_model_by_keys_in_a_browser(
    browser: Browser, trained_run: Path, tmp_path: Path
) -> None:
    """One person ranks the answers from the last one shown to the first, and ties the last two."""
    target = copy_upstream(trained_run, "rm", tmp_path / "run")
    (target / "config.yaml").write_bytes((trained_run / "config.yaml").read_bytes())
    ask = ("collect", "rankings", "--run-dir", target, "-n", 10, "--again", 0, "--port", 0, SHORT)
    with serving(*ask) as url, opened(browser, url) as page:
        for done in range(10):
            expect(page.locator("#figures")).to_contain_text(f"{done} of 10")
            for letter, rank in zip("ABCD"[: len(texts(page))], "4321", strict=False):
                card(page, letter).focus()
                press(page, rank)
            press(page, "=", "Enter")
            said(page, "Saved.")
    labels = read_round(target / "people/rankings").labels
    for showing, label in labels.submitted():
        ranks = [(label.ranks or ())[position] for position in showing.order]  # as shown
        assert ranks == sorted(ranks, reverse=True) and len(ranks) - len(set(ranks)) <= 1
    run_stage("rm", target, *PEOPLE, "rm.max_steps=2")
    assert len(rows(target / "rm/rankings.jsonl")) == 10
    assert metrics(target / "rm/manifest.json")["people"] == 1


def test_the_stage_itself_says_what_is_missing(run: Path, trained_run: Path, tmp_path: Path) -> None:
    """A share may be enough, and without it, the stage ends with status 3 before it loads a model."""
    target = copy_upstream(trained_run, "rm", tmp_path / "run")
    (target / "config.yaml").write_bytes((trained_run / "config.yaml").read_bytes())
    ask = ("collect", "rankings", "--run-dir", target, "-n", 8, "--port", 0, SHORT)
    with serving(*ask) as url:
        anna = Labeller(url, "anna")
        for _ in range(4):
            assert anna.rank(anna.take()).status_code == 200
    waits = run_stage("rm", target, *PEOPLE, status=3).stdout
    assert "stage rm waits for people: 4 more of 8 prompts to rank (4 are done). Ask them: tristage" in waits
    assert not (target / "rm").exists()
    run_stage("rm", target, *PEOPLE, "rm.rankings.complete=0.5", "rm.max_steps=1", "data.rm.held_out=1")
    assert len(rows(target / "rm/rankings.jsonl")) == 4
    assert len(read_round(target / "people/rankings").unlabelled) == 4


def test_status_shows_the_round(ranked: Path) -> None:
    assert "people: rankings, 16 of 16 tasks done" in tristage("status", "--run-dir", ranked)
