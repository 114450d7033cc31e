"""The desk: who gets which task, what counts, and what stages read of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any
from uuid import uuid4

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau

from apps.collect import figures as collect_figures
from apps.collect.assignment import Plan
from apps.collect.desk import Answer, Desk, UnknownShowing, WrongKind
from apps.collect.figures import agreement, progress, win_rate
from configs.errors import UserError
from configs.schema import Source
from data.people.agreement import agreement_of_tasks, self_agreement
from data.people.events import Shown, Submitted
from data.people.results import demonstrations, rankings, ratings, write_results
from data.people.round import Kind, Round, read_round
from data.sources.loading import load_rows
from data.storage.files import read_json_lines
from tests.support.people import desk_of, new_round


@dataclass
class Clock:
    """A clock that a test moves."""

    time: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_minutes(self, minutes: float) -> None:
        self.time += timedelta(minutes=minutes)


def answer(showing, ranks=None, **given) -> Answer:
    ranks = None if given.keys() & {"rating", "text"} else ranks or list(range(1, len(showing.order) + 1))
    return Answer(showing.showing, uuid4().hex, given.pop("seconds", 2.0), ranks, **given)


def take(desk: Desk, name: str) -> Shown:
    """The task that a person gets; there must be one."""
    showing = desk.next(name)
    assert showing is not None
    return showing


def rank_by_text(desk, showing, reverse=False) -> Answer:
    """Answer 0.0 is the best, whatever the order in which the page shows the answers."""
    ranks = [position + 1 for position in showing.order]
    return answer(showing, [len(ranks) + 1 - rank for rank in ranks] if reverse else ranks)


def test_nobody_gets_what_another_holds_and_all_is_done_once(tmp_path):
    new_round(tmp_path, tasks=6)
    with desk_of(tmp_path) as desk:
        first, second = take(desk, "anna"), take(desk, "ben")
        assert first.task != second.task
        assert take(desk, "anna") == first  # a page that is loaded again
        done = Counter[str]()
        for turn in range(6):
            name = ("anna", "ben")[turn % 2]
            showing = take(desk, name)
            desk.submit(name, answer(showing))
            done[showing.task] += 1
        assert set(done.values()) == {1} and len(done) == 6
        assert desk.next("anna") is None and desk.next("carol") is None
        assert desk.round.unlabelled == []


def test_a_lease_ends_and_the_task_goes_to_another(tmp_path):
    new_round(tmp_path, tasks=1)
    clock = Clock()
    with desk_of(tmp_path, Plan(0, 0, lease_seconds=600), clock=clock) as desk:
        held = take(desk, "anna")
        assert desk.next("ben") is None
        clock.pass_minutes(6)
        desk.hold("anna", held.showing)
        clock.pass_minutes(6)
        assert desk.next("ben") is None  # anna's page says that she is at it
        clock.pass_minutes(10)
        taken = take(desk, "ben")
        assert taken.task == held.task
        assert desk.assignment.held("anna") is None
        with pytest.raises(UnknownShowing):  # so anna's page learns of it
            desk.hold("anna", held.showing)
        desk.submit("ben", answer(taken))
        desk.submit("anna", answer(held))  # what a person gave is never thrown away
        assert len(rankings(desk.round)) == 2


def test_a_server_that_starts_again_leaves_each_task_with_its_person(tmp_path):
    """Whoever took a task last keeps it, however long the server was away."""
    new_round(tmp_path, tasks=1)
    clock, plan = Clock(), Plan(0, 0, lease_seconds=600)
    with desk_of(tmp_path, plan, clock=clock) as desk:
        expired = take(desk, "anna")
        clock.pass_minutes(15)
        held = take(desk, "ben")
    clock.pass_minutes(60)
    with desk_of(tmp_path, plan, clock=clock) as desk:
        assert desk.next("carol") is None and desk.next("anna") is None
        assert take(desk, "ben") == held
        with pytest.raises(UnknownShowing):
            desk.hold("anna", expired.showing)
        clock.pass_minutes(11)
        assert take(desk, "carol").task == held.task


def test_what_was_taken_back_comes_first_after_a_restart(tmp_path):
    new_round(tmp_path, tasks=4)
    with desk_of(tmp_path) as desk:
        first = take(desk, "anna")
        desk.submit("anna", answer(first, [2, 1, 1, 3], seconds=7.5))
        take(desk, "anna")
        desk.undo("anna")
    with desk_of(tmp_path) as desk:
        assert take(desk, "anna") == first
        undone = desk.labels.undone[first.showing]
        assert isinstance(undone, Submitted) and undone.seconds == 7.5
        desk.submit("anna", answer(first))
        assert desk.labels.undone == {}


def test_shared_tasks_go_to_everyone_and_some_come_again(tmp_path):
    new_round(tmp_path, tasks=40)
    with desk_of(tmp_path, Plan(overlap=0.25, again=0.2)) as desk:
        people = ["anna", "ben", "carol"]
        seen: dict[str, list[Shown]] = {name: [] for name in people}
        while any(desk.next(name) for name in people):
            for name in people:
                if showing := desk.next(name):
                    seen[name].append(showing)
                    desk.submit(name, rank_by_text(desk, showing, reverse=name == "carol"))
        everyone = set.intersection(*({one.task for one in shown} for shown in seen.values()))
        assert len(everyone) == 10
        assert len({one.task for shown in seen.values() for one in shown}) == 40
        for name, shown in seen.items():
            again = [one for one in shown if one.again]
            assert again
            for one in again:
                places = [place for place, other in enumerate(shown) if other.task == one.task]
                assert len(places) == 2
            assert self_agreement(desk.round, name) == [1.0] * len(again)
        # Anna and Ben agree, and Carol turns everything around: of three pairs of people, one agrees.
        assert agreement_of_tasks(desk.round) == pytest.approx([1 / 3] * 10)
        figures = agreement(desk.round)
        assert figures["tau_b"]["value"] == pytest.approx(-1 / 3)
        assert figures["alpha"]["value"] < 0 and figures["alpha"]["low"] is None  # all tasks are alike
        assert len(rankings(desk.round)) == 40 + 2 * 10  # what came again is no ranking more


def test_the_order_of_the_answers_is_recorded_and_undone_in_the_ranks(tmp_path):
    new_round(tmp_path, tasks=8)
    with desk_of(tmp_path) as desk:
        orders = []
        while showing := desk.next("anna"):
            orders.append(showing.order)
            desk.submit("anna", rank_by_text(desk, showing))
        assert len(set(orders)) > 3  # of 24
    for row in rankings(read_round(tmp_path)):
        number = row["prompt"].split()[1]
        assert row["completions"] == [f"Answer {number}.{place}" for place in range(4)]
        assert row["ranks"] == [0, 1, 2, 3]


def test_ties_stay_ties_and_gaps_close(tmp_path):
    new_round(tmp_path, tasks=1)
    with desk_of(tmp_path) as desk:
        showing = take(desk, "anna")
        shown = [[1, 4, 4, 9][position] for position in showing.order]
        desk.submit("anna", answer(showing, shown))
        assert rankings(desk.round)[0]["ranks"] == [0, 1, 1, 2]


def test_a_submission_counts_once_and_may_be_undone(tmp_path):
    new_round(tmp_path, tasks=3)
    with desk_of(tmp_path) as desk:
        showing = take(desk, "anna")
        given = answer(showing, demonstration="A better answer.")
        desk.submit("anna", given)
        desk.submit("anna", given)
        assert desk.counts("anna") == {
            "done": 1, "left": 2, "total": 3, "today": 1, "median_seconds": 2.0,
        }  # fmt: skip
        assert [row["completion"] for row in demonstrations(desk.round)] == ["A better answer."]
        shown, outcome = desk.undo("anna") or (None, None)
        assert shown == showing and isinstance(outcome, Submitted)
        assert outcome.demonstration == "A better answer."
        assert rankings(desk.round) == [] and desk.undo("anna") is None
        desk.submit("anna", given)  # the page's last retry arrives late
        assert rankings(desk.round) == []
        desk.submit("anna", answer(showing))
        assert len(rankings(desk.round)) == 1


def test_what_is_left_is_all_but_the_task_in_sight(tmp_path):
    new_round(tmp_path, tasks=5)
    with desk_of(tmp_path, Plan(overlap=1, again=0)) as desk:
        first = take(desk, "anna")
        assert desk.counts("anna")["left"] == 4
        desk.submit("anna", answer(first))
        second = take(desk, "anna")
        assert (desk.counts("anna")["done"], desk.counts("anna")["left"]) == (1, 3)
        desk.undo("anna")
        assert desk.next("anna") == first  # what was taken back comes before what is held since
        assert (desk.counts("anna")["done"], desk.counts("anna")["left"]) == (0, 4)
        desk.submit("anna", answer(first))
        assert desk.next("anna") == second


def test_a_skipped_task_is_done_unless_another_person_takes_it(tmp_path):
    new_round(tmp_path, tasks=2)
    with desk_of(tmp_path) as desk:
        for _ in range(2):
            desk.skip("anna", take(desk, "anna").showing, uuid4().hex, 1.0, "unclear", "")
        assert desk.next("anna") is None
        assert desk.round.missing() == 0
        desk.submit("ben", answer(take(desk, "ben")))
        figures = progress(desk.round)
        assert figures["labelled"] == 1 and figures["skips"] == {"unclear": 2}


def test_what_is_no_answer_to_the_task_is_refused(tmp_path):
    new_round(tmp_path, tasks=2)
    with desk_of(tmp_path) as desk:
        showing = take(desk, "anna")
        for wrong in (
            answer(showing, [1, 2, 3]),
            answer(showing, rating=3),
            Answer(showing.showing, uuid4().hex, 1.0),
        ):
            with pytest.raises(WrongKind):
                desk.submit("anna", wrong)
        for name, one in (("ben", answer(showing)), ("anna", Answer("unknown", uuid4().hex, 1.0, [1]))):
            with pytest.raises(UnknownShowing):
                desk.submit(name, one)
        desk.submit("anna", answer(showing))
        with pytest.raises(UnknownShowing):  # in another tab of the same person
            desk.submit("anna", answer(showing))


def test_a_second_server_and_a_damaged_file_are_refused(tmp_path):
    new_round(tmp_path, tasks=2)
    with desk_of(tmp_path) as desk:
        desk.submit("anna", answer(take(desk, "anna")))
        with pytest.raises(UserError, match="another server collects labels there"), desk_of(tmp_path):
            pass
    labels = tmp_path / "labels.jsonl"
    whole = labels.read_text()
    labels.write_text(whole.replace('"order":[', '"order":[7,'))
    with pytest.raises(
        UserError, match=r"labels.jsonl, line 1: damaged \(`order` does not order the answers"
    ):
        read_round(tmp_path)
    labels.write_text(whole)
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"tasks\.jsonl: missing or damaged"):
        read_round(tmp_path)


def test_what_a_server_forgets_at_a_kill_is_in_the_file(tmp_path):
    new_round(tmp_path, tasks=3)
    with desk_of(tmp_path) as desk:
        desk.submit("anna", answer(take(desk, "anna")))
        held = take(desk, "anna")
    with desk_of(tmp_path) as again:
        assert again.next("anna") == held
        again.submit("anna", answer(held))
        assert again.counts("anna")["done"] == 2


def test_stages_read_rankings_and_ratings(tmp_path):
    kinds: tuple[Kind, ...] = ("rankings", "ratings", "pairs")
    folders = {kind: tmp_path / kind for kind in kinds}
    for kind, folder in folders.items():
        new_round(folder, kind, tasks=5, answers={"rankings": 4, "ratings": 1, "pairs": 2}[kind])
        with desk_of(folder, Plan(overlap=1, again=0)) as desk:
            for number, name in enumerate(("anna", "ben")):
                while showing := desk.next(name):
                    rating = {"rating": 5 + number} if kind == "ratings" else {}
                    desk.submit(name, answer(showing, **rating))
            write_results(desk.round)
    rows = load_rows(Source(path=str(folders["rankings"] / "rankings.jsonl")), "rankings", print).rows
    assert len(rows) == 10 and {len(row["completions"]) for row in rows} == {4}
    assert {row["rating"] for row in ratings(read_round(folders["ratings"]))} == {5.5}
    pairs = read_json_lines(folders["pairs"] / "pairs.jsonl")
    assert {tuple(sorted(row["sources"])) for row in pairs} == {("ppo", "sft")}
    assert json.loads((folders["pairs"] / "round.json").read_text())["kind"] == "pairs"


def test_shared_tasks_with_fewer_than_two_labels(tmp_path):
    new_round(tmp_path, tasks=8)
    with desk_of(tmp_path, Plan(overlap=0.5, again=0)) as desk:
        assert desk.round.uncompared == 4
        while showing := desk.next("anna"):
            desk.submit("anna", answer(showing))
        assert desk.round.uncompared == 4
        desk.submit("ben", answer(take(desk, "ben")))
        assert desk.round.uncompared == progress(desk.round)["uncompared"] == 3
    assert read_round(tmp_path).uncompared == 3  # the share is in round.json


def given_by(folder, kind: Kind, values: dict[str, list[Any]]) -> Round:
    """A round in which each person said `values` of the tasks, in the order of the tasks."""
    tasks = len(next(iter(values.values())))
    answers = {"rankings": 4, "ratings": 1}[kind]
    order = list(new_round(folder, kind, tasks=tasks, answers=answers).tasks)
    with desk_of(folder, Plan(overlap=1, again=0)) as desk:
        for name, of_name in values.items():
            while showing := desk.next(name):
                value = of_name[order.index(showing.task)]
                if kind == "ratings":
                    desk.submit(name, answer(showing, rating=value))
                else:
                    desk.submit(name, answer(showing, [value[place] + 1 for place in showing.order]))
        return desk.round


def test_tau_of_rankings_is_that_of_the_library(tmp_path):
    random = np.random.default_rng(1)
    given = {name: [random.integers(4, size=4) for _ in range(12)] for name in ("anna", "ben", "carol")}
    found = agreement(given_by(tmp_path, "rankings", given))["tau_b"]
    of_tasks = [
        np.nanmean([kendalltau(a, b).statistic for a, b in combinations(rows, 2)])
        for rows in zip(*given.values(), strict=True)
    ]
    assert found["value"] == pytest.approx(np.nanmean(of_tasks))
    assert found["low"] < found["value"] < found["high"]


def test_tau_of_ratings_is_that_of_the_library_with_an_interval_over_answers(tmp_path):
    """All answers are one group, so an interval over groups would have no width."""
    random = np.random.default_rng(2)
    base = random.integers(1, 8, size=30)
    given = {
        name: np.clip(base + random.integers(-1, 2, size=30), 1, 7).tolist() for name in ("anna", "ben", "li")
    }
    found = agreement(given_by(tmp_path, "ratings", given))["tau_b"]
    taus = [kendalltau(a, b).statistic for a, b in combinations(given.values(), 2)]
    assert found["value"] == pytest.approx(np.mean(taus))
    assert 0.02 < found["value"] - found["low"] < 0.4 and found["high"] <= 1


def test_few_or_equal_values_have_no_interval(tmp_path):
    few = given_by(tmp_path / "few", "rankings", {"anna": [(0, 1, 2, 3)] * 9, "ben": [(0, 1, 3, 2)] * 9})
    equal = given_by(
        tmp_path / "equal", "rankings", {"anna": [(0, 1, 2, 3)] * 20, "ben": [(0, 1, 3, 2)] * 20}
    )
    for content, number in ((few, 9), (equal, 20)):
        for figure in agreement(content).values():
            assert (figure["n"], figure["low"], figure["high"]) == (number, None, None)


def test_alpha_places_answers_that_tie_in_the_middle(tmp_path):
    """Both put D last. Dense ranks would say 2 and 4; mid-ranks say 4 and 4 (Krippendorff's reference)."""
    content = given_by(tmp_path, "rankings", {"anna": [(0, 0, 0, 1)] * 12, "ben": [(0, 1, 2, 3)] * 12})
    values = np.array([[2, 2, 2, 4], [1, 2, 3, 4]], float)
    expected = krippendorff.alpha(np.tile(values, 12), level_of_measurement="ordinal")
    assert agreement(content)["alpha"]["value"] == pytest.approx(expected)


def test_the_win_rate_counts_prompts_that_both_answered_alike(tmp_path):
    content = new_round(tmp_path, "pairs", tasks=8, answers=2)
    with_equal = content.settings.model_copy(update={"equal": 4})
    (tmp_path / "round.json").write_text(with_equal.model_dump_json())
    with desk_of(tmp_path) as desk:
        for judged, rate, prompts in ((4, 4 + 2 * 0.5, 6), (4, 8 + 4 * 0.5, 12)):
            for _ in range(judged):
                showing = take(desk, "anna")  # the second answer, of ppo, is the better one
                desk.submit("anna", answer(showing, [2 - position for position in showing.order]))
            found = win_rate(desk.round)
            assert found is not None and (found["policy"], found["against"]) == ("ppo", "sft")
            assert (found["n"], found["value"]) == (prompts, pytest.approx(rate / prompts))


def test_demonstrations_that_continue_a_text_stay_apart_from_it(tmp_path):
    content = new_round(tmp_path, "demonstrations", tasks=1, answers=0)
    (tmp_path / "round.json").write_text(
        content.settings.model_copy(update={"continues_text": True}).model_dump_json()
    )
    with desk_of(tmp_path) as desk:
        with pytest.raises(WrongKind, match="empty"):
            desk.submit("anna", answer(take(desk, "anna"), text=" \n"))
        desk.submit("anna", answer(take(desk, "anna"), text="and so on."))
        assert demonstrations(desk.round)[0]["completion"] == " and so on."


def test_a_demonstration_that_was_taken_back_is_gone(tmp_path):
    new_round(tmp_path, tasks=2)
    with desk_of(tmp_path) as desk:
        showing = take(desk, "anna")
        desk.submit("anna", answer(showing, [1, 2, 3, 4], demonstration="Better."))
        write_results(desk.round)
        assert len(read_json_lines(tmp_path / "demonstrations.jsonl")) == 1
        desk.undo("anna")
        write_results(desk.round)
    assert (tmp_path / "demonstrations.jsonl").read_text() == ""


@pytest.mark.parametrize(("people", "values"), [(2, 4), (3, 7), (4, 3)])
def test_the_interval_of_alpha_is_that_of_the_library(people, values):
    """Each draw of tasks, counted by coincidences, against krippendorff on the drawn answers themselves."""
    random = np.random.default_rng(people)
    blocks = []
    for _ in range(12):
        block = random.integers(values, size=(people, 4)).astype(float)
        block[random.random(block.shape) < 0.2] = np.nan
        blocks.append(block)
    found = collect_figures.resampled_alphas(blocks)
    random = np.random.default_rng(collect_figures.SEED)
    picks = random.integers(12, size=(collect_figures.RESAMPLES, 12))
    expected = [
        krippendorff.alpha(np.concatenate([blocks[i] for i in row], 1), level_of_measurement="ordinal")
        for row in picks[:40]
    ]
    assert found[:40] == pytest.approx(expected)
