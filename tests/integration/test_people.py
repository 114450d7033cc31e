"""From prompts to a reward model that trains on what people ranked: the command, the server, the stage."""

from __future__ import annotations

import json
import os
import shlex
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
    assert server.returncode == 0 and f"stopped; {words[1]}:" in rest


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
    # One pair is a tie of one person only. All that both order, they order alike.
    assert found["label_agreement"] == 1
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
    assert 0.5 < figures["agreement"]["alpha"]["value"] < 1
    assert {person["done"] for person in figures["people"]} == {16}


def test_the_command_of_the_waiting_line_works(ranked: Path, tmp_path: Path) -> None:
    """It repeats the overrides of the run. As it is printed, it begins a round, and continues one."""
    target = tmp_path / "run"
    shutil.copytree(ranked, target, ignore=shutil.ignore_patterns("rm", "rankings.jsonl"))
    (target / "people/rankings/labels.jsonl").unlink()
    run = ("run", "--config", TINY, "--run-dir", target, "--from", "rm", *PEOPLE, "rm.rankings.complete=0.9")
    said = tristage(*run, status=3)
    assert "15 more of 16 prompts to rank (0 are done; still without a second ranking: 16 of those" in said
    command = shlex.split(said.partition("Ask them: tristage ")[2])
    assert "rm.rankings.labeller=people" in command
    assert "16 tasks in" in tristage(*command, "--prepare")
    shutil.rmtree(target / "people")
    said = tristage(*run, status=3)
    command = shlex.split(said.partition("Ask them: tristage ")[2])
    assert "tasks in" in tristage(*command, "-n", 4, "--prepare")
    assert len(read_round(target / "people/rankings").tasks) == 4
    refused = tristage(*command, "rm.rankings.rollout.max_new_tokens=8", "--prepare", status=2)
    assert refused == ""


def test_people_judge_ppo_from_the_pairs_to_the_evaluation(trained_run: Path, tmp_path: Path) -> None:
    """What is collected by default is what `evaluate --judges people` and the report show."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("checkpoints", "report"))
    recorded = rows(run / "ppo/evaluation.jsonl")
    with serving("collect", "pairs", "--run-dir", run, "--overlap", 1, "--again", 0, "--port", 0) as url:
        anna = Labeller(url, "anna")
        while (task := anna.next()) is not None:  # she prefers what SFT said
            of_sft = {row["sft"].strip() for row in recorded if row["prompt"] == last(task["prompt"])}
            ranks = [1 if answer.strip() in of_sft else 2 for answer in task["answers"]]
            assert anna.rank(task, ranks).ok
    different = sum(row["sft"] != row["ppo"] for row in recorded)
    equal = len(recorded) - different
    evaluated = tristage("evaluate", "--run-dir", run, "--judges", "people")
    file = json.loads((run / "evaluation/evaluation.json").read_text())
    rate = file["win_rates"]["people"]["ppo"]["sft"]
    assert rate["win_rate"] == pytest.approx(0.5 * equal / len(recorded))
    assert rate["win_rate_n"] == len(recorded)
    assert "Beats sft, by" in evaluated
    assert f"People judged {len(recorded)} of {len(recorded)} pairs of sft and ppo" in evaluated
    page = Path(tristage("report", "--run-dir", run).split()[-1]).read_text()
    assert "PPO&#x27;s win rate against SFT, by people" in page or "win rate against SFT, by people" in page
    # The remedy that is printed for other candidates works, and what it collects counts.
    command = shlex.split(next(line for line in evaluated.splitlines() if "Ask people:" in line))
    ask = command[command.index("tristage") + 1 :]
    with serving(*ask, "--port", 0) as url:
        ben = Labeller(url, "ben")
        assert ben.rank(ben.take()).ok
    again = tristage("evaluate", "--run-dir", run, "--judges", "people", "--policies", "base,sft")
    assert f"of {len(recorded)} pairs of base and sft, with answers of their round" in again


def last(prompt: str | list[dict[str, str]]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


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
            letters = "ABCD"[: len(texts(page))]
            for rank, letter in enumerate(reversed(letters), 1):
                card(page, letter).focus()
                press(page, str(rank))
            press(page, "=", "Enter")
            said(page, "Saved.")
    labels = read_round(target / "people/rankings").labels
    for showing, label in labels.submitted():
        ranks = [(label.ranks or ())[position] for position in showing.order]  # as shown
        assert ranks == sorted(ranks, reverse=True) and len(ranks) - len(set(ranks)) <= 1
    said_of_it = run_stage("rm", target, *PEOPLE, "rm.max_steps=2").stdout
    assert "no two people ordered the same answers" in said_of_it
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
    assert "stage rm waits for people: 4 more of 8 prompts to rank (4 are done; still without" in waits
    assert not (target / "rm").exists()
    run_stage("rm", target, *PEOPLE, "rm.rankings.complete=0.5", "rm.max_steps=1", "data.rm.held_out=1")
    assert len(rows(target / "rm/rankings.jsonl")) == 4
    assert len(read_round(target / "people/rankings").unlabelled) == 4


def test_status_shows_the_round(ranked: Path) -> None:
    assert "people: rankings, 16 of 16 tasks done" in tristage("status", "--run-dir", ranked)
