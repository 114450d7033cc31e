"""The labelling page in a browser: by keys, mouse and finger. What counts is on the server's disk."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from apps.collect.app import PAGE
from apps.collect.assignment import Plan
from apps.collect.people import People, Person
from apps.collect.serve import Desktop, serve
from apps.collect.tasks import make_task
from data.people.events import Outcome, Skipped, Submitted
from data.people.results import demonstrations, rankings
from data.people.round import KINDS, Kind, Settings, create_round, read_round
from data.sources.messages import Text
from tests.support.accessibility import violations
from tests.support.labelling_page import CHROMIUM, card, chromium, opened, press, said, said_saved, texts
from tests.support.people import EVERYTHING, Labeller, collecting, new_round
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no program `chromium` is on PATH")
ANSWERS: dict[Kind, int] = {"rankings": 4, "pairs": 2, "ratings": 1, "demonstrations": 0}
LARGE = 100_000  # bytes
DRAFTS = "() => Object.keys(localStorage).filter((name) => name.includes('draft')).length"
HOSTILE = [
    "<img src=x onerror='document.title=1'><b>bold</b>",
    "<script>document.title = 'taken over'</script>",
    "word " * (LARGE // 5),
    "x" * LARGE,
    "\u202eright to left\u202c, then שלום",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextmanager
def labelling(
    browser: Browser, folder: Path, kind: Kind = "rankings", plan: Plan = EVERYTHING, **options: Any
) -> Iterator[Page]:
    """A round of three tasks, and its page."""
    content = new_round(folder, kind, tasks=3, answers=ANSWERS[kind])
    with collecting(content, plan) as url, opened(browser, url, **options) as page:
        yield page


def asks(folder: Path, prompts: Sequence[Text], answers: Sequence[str], kind: Kind = "rankings") -> Any:
    """A round with given words."""
    tasks = [make_task("train", prompt, answers) for prompt in prompts]
    create_round(
        folder, Settings(kind=kind, run="tiny", answers=len(answers), policies=(), prompts=""), tasks
    )
    return read_round(folder)


def outcomes(folder: Path) -> list[Outcome]:
    """What is on the disk: what was submitted or skipped and not taken back."""
    return list(read_round(folder).labels.outcomes.values())


def saved(folder: Path, number: int) -> list[Outcome]:
    until(lambda: len(outcomes(folder)) == number)
    return outcomes(folder)


def ranks_of(folder: Path, row: int = -1) -> dict[str, int]:
    """The rank of each answer's text in a ranking on the disk, 0 for the best."""
    ranking = rankings(read_round(folder))[row]
    return dict(zip(ranking["completions"], ranking["ranks"], strict=True))


def centre(locator: Locator, part: float = 0.5) -> tuple[float, float]:
    box: Any = locator.bounding_box()
    return box["x"] + 30, box["y"] + part * box["height"]


def test_keys_alone_rank_and_tie(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        shown = texts(page)
        press(page, "Shift+ArrowDown")
        said(page, "Answer A is now second of four.")
        press(page, "ArrowDown", "1")  # C is the best: answers that nobody placed make room
        said(page, "Answer C is now first of four.")
        assert list(texts(page)) == ["C", "A", "B", "D"]
        press(page, "ArrowDown", "ArrowDown", "=")
        said(page, "Answer B is now second of four, equal with A.")
        expect(page.get_by_role("group", name="Answer A, second of four, equal with B")).to_be_visible()
        press(page, "Enter")
        said(page, "Not placed yet: 1.")
        press(page, "4", "Enter")
        said(page, "Not placed yet: 1.")  # B moved out of its tie; nobody placed D
        card(page, "B").focus()
        press(page, "2")
        card(page, "D").focus()
        press(page, "4", "Enter")
        saved(tmp_path, 1)
        expected = {"C": 0, "A": 1, "B": 1, "D": 2}
        assert ranks_of(tmp_path) == {shown[letter]: rank for letter, rank in expected.items()}


def test_each_digit_is_the_rank_that_it_says(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        shown = texts(page)
        for letter, rank in {"A": "3", "B": "1", "C": "2", "D": "2"}.items():
            card(page, letter).focus()
            press(page, rank)
        press(page, "Enter")
        saved(tmp_path, 1)
        expected = {"A": 2, "B": 0, "C": 1, "D": 1}
        assert ranks_of(tmp_path) == {shown[letter]: rank for letter, rank in expected.items()}


def test_a_stray_enter_does_not_count(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        shown = texts(page)
        press(page, "Enter", "Enter")
        page.get_by_role("button", name="Submit").click(force=True)  # although it looks disabled
        said(page, "Nothing is ordered yet.")
        assert outcomes(tmp_path) == []
        press(page, "c", "Enter")
        saved(tmp_path, 1)
        assert ranks_of(tmp_path) == {text: rank for rank, text in enumerate(shown.values())}
        said(page, "Saved. Task 2 of 3.")
        page.wait_for_timeout(500)
        assert page.evaluate(DRAFTS) == 0  # nor does the confirmed order come back as a draft
        press(page, "Enter")
        said(page, "Nothing is ordered yet.")
        assert len(outcomes(tmp_path)) == 1


def test_a_place_that_nobody_gave_is_no_preference(browser: Browser, tmp_path: Path) -> None:
    """One digit says which answer is the best, and nothing of the other three."""
    with labelling(browser, tmp_path) as page:
        press(page, "1", "Enter")
        said(page, "Not placed yet: 3.")
        assert outcomes(tmp_path) == []
        press(page, "ArrowDown", "2", "ArrowDown", "2", "ArrowDown", "4", "Enter")
        saved(tmp_path, 1)
        assert list(ranks_of(tmp_path).values()) == [0, 1, 1, 2]


def test_the_mouse_drags_between_ranks_and_onto_one(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, viewport={"width": 1000, "height": 900}) as page:
        shown = texts(page)
        for moved, target, part in (("D", "A", 0.1), ("B", "C", 0.5)):
            page.mouse.move(*centre(card(page, moved).locator(".grip")))
            page.mouse.down()
            page.mouse.move(*centre(card(page, target), part), steps=8)
            page.mouse.up()
            page.wait_for_timeout(200)  # the cards glide
        said(page, "Answer B is now third of four, equal with C.")
        assert list(texts(page)) == ["D", "A", "B", "C"]
        page.get_by_role("button", name="This order is right").click()
        page.get_by_role("button", name="Submit").click()
        saved(tmp_path, 1)
        expected = {"D": 0, "A": 1, "B": 2, "C": 2}
        assert ranks_of(tmp_path) == {shown[letter]: rank for letter, rank in expected.items()}


def test_a_finger_drags_on_a_narrow_phone(browser: Browser, tmp_path: Path) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with labelling(browser, tmp_path, **phone) as page:
        shown = texts(page)
        touch = page.context.new_cdp_session(page)

        def finger(kind: str, *at: float) -> None:
            points = [{"x": at[0], "y": at[1]}] if at else []
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        start, end = centre(card(page, "C").locator(".grip")), centre(card(page, "A"), 0.1)
        finger("touchStart", *start)
        for step in range(1, 9):
            finger("touchMove", *(a + (b - a) * step / 8 for a, b in zip(start, end, strict=True)))
        finger("touchEnd")
        said(page, "Answer C is now first of four.")
        page.get_by_role("button", name="Move answer B up").tap()
        said(page, "Answer B is now second of four.")
        page.get_by_role("button", name="This order is right").tap()
        page.get_by_role("button", name="Submit").tap()
        saved(tmp_path, 1)
        expected = {"C": 0, "B": 1, "A": 2, "D": 3}
        assert ranks_of(tmp_path) == {shown[letter]: rank for letter, rank in expected.items()}
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360


def test_a_task_is_skipped_with_a_reason(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        press(page, "s", "Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        assert outcomes(tmp_path) == []
        press(page, "s", "2")
        said(page, "Saved. Task")
        press(page, "s", "4")
        page.keyboard.type("see note 1")
        press(page, "Enter")
        skips = saved(tmp_path, 2)
        assert [(skip.reason, skip.note) for skip in skips if isinstance(skip, Skipped)] == [
            ("cannot_judge", ""),
            ("other", "see note 1"),
        ]


def test_undo_brings_back_what_was_submitted(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        shown = texts(page)
        press(page, "4", "c", "e")
        page.keyboard.type("Better. ")
        press(page, "Control+Enter")
        said(page, "Task 2 of 3.")
        press(page, "u")
        said(page, "Your last submission is back.")
        assert outcomes(tmp_path) == []
        assert list(texts(page)) == ["B", "C", "D", "A"] and sorted(texts(page)) == sorted(shown)
        expect(page.get_by_label("as you would write it")).to_have_value(re.compile("Better. "))
        card(page, "D").focus()
        press(page, "1", "Enter")
        saved(tmp_path, 1)
        expected = {"B": 0, "D": 0, "C": 1, "A": 2}
        assert ranks_of(tmp_path) == {shown[letter]: rank for letter, rank in expected.items()}
        said(page, "Task 2 of 3.")
        press(page, "u")
        said(page, "Your last submission is back.")
        press(page, "u")
        said(page, "There is nothing to undo.")
        assert outcomes(tmp_path) == []


def test_an_undo_whose_answer_is_lost_loses_no_task(browser: Browser, tmp_path: Path) -> None:
    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    with labelling(browser, tmp_path, refused=True) as page:
        first = texts(page)
        press(page, "c", "Enter")
        said(page, "Task 2 of 3.")
        page.route("**/api/undo", lose)
        with page.expect_response("**/api/next"):
            press(page, "u")
        assert outcomes(tmp_path) == []
        seen = []
        for number in (1, 2, 3):
            said(page, f"Task {number} of ")
            seen.append(texts(page))
            press(page, "c", "Enter")
            saved(tmp_path, number)
        assert first in seen and len(rankings(read_round(tmp_path))) == 3


def test_the_best_answer_is_edited_into_a_demonstration(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        best = texts(page)["C"]
        press(page, "e")
        said(page, "Nothing is ordered yet.")
        card(page, "C").focus()
        press(page, "1", "c", "e", "Control+Enter")  # unchanged, it is no demonstration
        assert [label.demonstration for label in saved(tmp_path, 1) if isinstance(label, Submitted)] == [None]
        said(page, "Task 2 of 3.")
        press(page, "u")
        said(page, "Your last submission is back.")
        press(page, "e", "End")
        page.keyboard.type(", and more: s u 1 ?")
        press(page, "Escape")
        expect(card(page, "C")).to_be_focused()
        press(page, "Enter")
        saved(tmp_path, 1)
        assert [row["completion"] for row in demonstrations(read_round(tmp_path))] == [
            f"{best}, and more: s u 1 ?"
        ]


def test_a_draft_outlives_a_reload(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        shown = texts(page)
        press(page, "3", "c", "e")
        page.keyboard.type("Mine: ")
        page.wait_for_timeout(1000)
        assert page.evaluate(DRAFTS) == 1
        page.reload()
        said(page, "Your unfinished work is back.")
        assert list(texts(page)) == ["B", "C", "A", "D"] and texts(page) == shown
        expect(page.get_by_label("as you would write it")).to_have_value(re.compile("Mine: $"))
        press(page, "Enter")
        (label,) = saved(tmp_path, 1)
        said(page, "Task 2 of 3.")
        assert isinstance(label, Submitted) and (label.demonstration or "").endswith("Mine: ")
        assert label.seconds >= 1  # the time before the reload counts
        assert page.evaluate(DRAFTS) == 0


def test_only_time_in_sight_counts_and_the_task_is_held(browser: Browser, tmp_path: Path) -> None:
    show = """(hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with labelling(browser, tmp_path, name=None) as page:
        page.clock.install()
        page.reload()
        page.locator("#name").fill("anna")
        press(page, "Enter")
        page.locator("#guide button").click()
        expect(card(page, "A")).to_be_visible()
        page.clock.fast_forward(10_000)
        page.evaluate(show, True)
        page.clock.fast_forward(500_000)
        page.evaluate(show, False)
        page.clock.fast_forward(5_000)
        page.clock.fast_forward(40_000)
        press(page, "c")
        with page.expect_request("**/api/hold"):  # the person is at it
            page.clock.fast_forward(30_000)
        press(page, "Enter")
        (label,) = saved(tmp_path, 1)
        assert isinstance(label, Submitted) and 85 <= label.seconds < 90


def serve_folder(folder: Path, port: int) -> None:
    """What a process of the next test runs."""
    serve(folder, Desktop("127.0.0.1", port, None, None, EVERYTHING))


def test_a_killed_server_loses_nothing_and_counts_nothing_twice(browser: Browser, tmp_path: Path) -> None:
    """It dies before it gets a submission, and again between the disk and its answer."""
    new_round(tmp_path, tasks=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    servers = [start_server(tmp_path, port)]

    def kill() -> None:
        servers[-1].kill()
        servers[-1].join()

    fates: list[str] = []

    def meet(route: Route) -> None:  # one route for the whole test: to remove and add one is a race
        fate = fates.pop() if fates else "saved"
        if fate == "killed after":
            route.fetch()
        if fate != "saved":
            kill()
        route.continue_() if fate == "saved" else route.abort()

    with opened(browser, f"http://127.0.0.1:{port}", refused=True) as page:
        page.route("**/api/submit", meet)
        fates.append("killed before")
        press(page, "c", "Enter")
        expect(page.locator("#banner")).to_contain_text("Not saved yet")
        assert outcomes(tmp_path) == []
        servers.append(start_server(tmp_path, port))
        page.evaluate("dispatchEvent(new Event('online'))")  # else it waits for up to 15 seconds
        said(page, "Saved. Task 2 of 3.")
        expect(page.locator("#banner")).to_be_empty()
        assert len(outcomes(tmp_path)) == 1

        fates.append("killed after")
        press(page, "c", "Enter")
        expect(page.locator("#banner")).to_contain_text("Not saved yet")
        assert len(outcomes(tmp_path)) == 2
        warns_before_it_is_left(page)
        later = page.context.new_page()
        page.close()  # whatever the browser asks
        servers.append(start_server(tmp_path, port))
        later.goto(f"http://127.0.0.1:{port}")
        said(later, "Saved. Task 3 of 3.")
        assert len(outcomes(tmp_path)) == 2 and len(rankings(read_round(tmp_path))) == 2
    servers[-1].terminate()
    servers[-1].join()
    assert [server.exitcode for server in servers] == [-signal.SIGKILL, -signal.SIGKILL, 0]


def start_server(folder: Path, port: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=serve_folder, args=(folder, port), daemon=True
    )
    process.start()
    until(lambda: listens(port))
    return process


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def warns_before_it_is_left(page: Page) -> None:
    with page.expect_event("dialog") as event:
        page.close(run_before_unload=True)
    assert event.value.type == "beforeunload"
    event.value.dismiss()


def test_hostile_text_is_only_text(browser: Browser, tmp_path: Path) -> None:
    content = asks(tmp_path, [[{"role": "user", "content": HOSTILE[0]}]], HOSTILE)
    with collecting(content) as url, opened(browser, url) as page:
        shown = texts(page)
        assert page.locator("main :is(img, script, b)").count() == 0 and page.title() == "Tristage"
        for text in (HOSTILE[0], HOSTILE[1], HOSTILE[4]):
            assert text in shown.values()
        large = next(letter for letter, text in shown.items() if text.startswith("xxx"))
        assert len(shown[large]) < 2000
        begun = page.evaluate("() => performance.now()")
        card(page, large).focus()
        press(page, "f")
        assert card(page, large).locator(".text").inner_text() == HOSTILE[3]
        assert page.evaluate("() => performance.now()") - begun < 5000
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        card(page, large).get_by_role("button", name="Show less").click()
        box: Any = card(page, large).bounding_box()
        assert box["height"] < 700
        hebrew = next(letter for letter, text in shown.items() if text == HOSTILE[4])
        assert card(page, hebrew).locator(".text").get_attribute("dir") == "auto"
        press(page, "c", "Enter")
        saved(tmp_path, 1)
        assert set(ranks_of(tmp_path)) == set(HOSTILE)


def test_a_long_prompt_stays_in_sight_and_opens(browser: Browser, tmp_path: Path) -> None:
    turns: list[Any] = [
        {"role": "user", "content": "Line\n" * 12},
        {"role": "assistant", "content": "Word " * 300},
        {"role": "user", "content": "And the last question?"},
    ]
    content = asks(tmp_path, [turns], [f"An answer of some length. {number}\n\n" * 5 for number in range(9)])
    with collecting(content) as url, opened(browser, url) as page:
        card(page, "I").focus()
        press(page, "9")
        expect(card(page, "I")).to_be_in_viewport()
        expect(page.get_by_text("And the last question?")).to_be_in_viewport()
        prompt: Any = page.locator("#prompt").bounding_box()
        press(page, "p")
        longer: Any = page.locator("#prompt").bounding_box()
        assert longer["height"] > prompt["height"]
        press(page, "p")
        expect(page.get_by_role("button", name="More of the prompt")).to_be_visible()


def test_answers_continue_the_text(browser: Browser, tmp_path: Path) -> None:
    content = asks(tmp_path, ["At noon he"], [" ate.", " slept."], "pairs")
    settings = content.settings.model_copy(update={"continues_text": True})
    (tmp_path / "round.json").write_text(settings.model_dump_json())
    with collecting(read_round(tmp_path)) as url, opened(browser, url) as page:
        assert sorted(page.locator(".card .text").all_inner_texts()) == [
            "At noon he ate.",
            "At noon he slept.",
        ]


def test_pairs(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, "pairs") as page:
        for number, key in enumerate("21=", 1):
            first, second = page.locator(".card .text").all_inner_texts()
            press(page, "Enter")
            said(page, "Choose an answer first")
            press(page, key, "Enter")
            said_saved(page, number, of=3)
            saved(tmp_path, number)
            ranks = {"1": [0, 1], "2": [1, 0], "=": [0, 0]}[key]
            assert ranks_of(tmp_path) == dict(zip((first, second), ranks, strict=True))
        expect(page.locator(".end")).to_contain_text("No task is left for you now.")
        press(page, "u")
        expect(page.get_by_role("button", name="Equally good")).to_have_attribute("aria-pressed", "true")


def test_ratings(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, "ratings") as page:
        press(page, "9", "0", "Enter")
        said(page, "Choose a number first.")
        press(page, "6", "Enter")
        saved(tmp_path, 1)
        said(page, "Task 2 of 3.")
        page.get_by_role("button", name="2", exact=True).click()
        page.get_by_role("button", name="Submit").click()
        labels = saved(tmp_path, 2)
        assert [label.rating for label in labels if isinstance(label, Submitted)] == [6, 2]
        press(page, "u")
        expect(page.get_by_role("button", name="2", exact=True)).to_have_attribute("aria-pressed", "true")


def test_demonstrations_start_from_a_draft_or_from_nothing(browser: Browser, tmp_path: Path) -> None:
    content = asks(tmp_path, ["First", "Second"], ["A draft."], "demonstrations")
    with collecting(content) as url, opened(browser, url) as page:
        press(page, "Control+Enter")
        said(page, "Write an answer first.")
        page.keyboard.type("s u 1 ?")
        expect(page.get_by_role("button", name="Start from the draft")).to_be_disabled()
        press(page, "Enter")
        page.keyboard.type("two lines")
        press(page, "Control+Enter")
        saved(tmp_path, 1)
        said(page, "Task 2 of 2.")
        press(page, "Escape", "d")
        expect(page.get_by_label("Your answer")).to_have_value("A draft.")
        press(page, "End")
        page.keyboard.type(" Better.")
        press(page, "Control+Enter")
        saved(tmp_path, 2)
        assert [row["completion"] for row in demonstrations(read_round(tmp_path))] == [
            "s u 1 ?\ntwo lines",
            "A draft. Better.",
        ]


def test_another_tab_has_answered(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, refused=True) as page:
        tab = page.context.new_page()
        tab.goto(page.url)
        expect(card(tab, "A")).to_be_visible()
        press(tab, "c", "Enter")
        said(tab, "Task 2 of 3.")
        press(page, "c", "Enter")
        expect(page.locator("#fault")).to_contain_text("no longer open for you")
        assert len(outcomes(tmp_path)) == 1
        assert texts(page) == texts(tab)


def test_it_speaks_chinese(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, locale="zh-CN") as page:
        expect(page.locator("html")).to_have_attribute("lang", "zh")
        press(page, "3")
        said(page, "回答 A 现在排第三，共四个。")
        page.get_by_label("语言").select_option("en")
        expect(page.locator("html")).to_have_attribute("lang", "en")
        assert list(texts(page)) == ["B", "C", "A", "D"]  # the work stays as it is
        page.reload()
        expect(page.get_by_role("button", name="Submit")).to_be_visible()
        press(page, "c", "Enter")
        saved(tmp_path, 1)


def test_keys_and_instructions_are_shown(browser: Browser, tmp_path: Path) -> None:
    content = new_round(tmp_path, tasks=1)
    with collecting(content, instructions="Be <b>kind</b>.") as url, opened(browser, url, name=None) as page:
        page.locator("#name").fill("李娜")
        press(page, "Enter")
        expect(page.get_by_text("Be <b>kind</b>.")).to_be_visible()
        press(page, "Enter")
        expect(card(page, "A")).to_be_focused()
        press(page, "?")
        expect(page.get_by_text("Edit the best answer into a demonstration")).to_be_visible()
        press(page, "Escape", "c", "Enter")
        saved(tmp_path, 1)
        assert [shown.labeller for shown in read_round(tmp_path).labels.showings.values()] == ["李娜"]
        page.reload()
        expect(page.locator(".end")).to_be_visible()  # without instructions
        page.get_by_role("button", name="Instructions").click()
        expect(page.get_by_text("Be <b>kind</b>.")).to_be_visible()


def test_a_link_says_who_it_is(browser: Browser, tmp_path: Path) -> None:
    content = new_round(tmp_path, tasks=4)
    people = People({"a" * 16: Person("anna"), "l" * 16: Person("lena", lead=True)})
    with collecting(content, people=people) as url:
        with opened(browser, url, name=None) as page:
            expect(page.get_by_role("alert").filter(has_text="personal link")).to_be_visible()
        for token, lead in (("a" * 16, False), ("l" * 16, True)):
            with opened(browser, url, name=None, refused=True) as page:
                page.goto(f"{url}/#token={token}")
                page.reload()
                page.get_by_role("button", name="Begin").click()
                assert page.url == f"{url}/"
                expect(page.get_by_role("link", name="Progress")).to_be_visible(visible=lead)
                expect(card(page, "A")).to_be_focused()
                press(page, "c", "Enter")
                said(page, "Saved.")
                page.goto(f"{url}/progress")
                expect(page.locator("#progress")).to_be_visible(visible=lead)
                expect(page.locator("#fault")).to_have_text("" if lead else re.compile("Only the lead"))
    names = {shown.labeller for shown in read_round(tmp_path).labels.showings.values()}
    assert names == {"anna", "lena"}


def test_progress_is_live(browser: Browser, tmp_path: Path) -> None:
    content = new_round(tmp_path, tasks=4)
    with collecting(content, Plan(overlap=1, again=0)) as url:
        anna, ben = Labeller(url, "anna"), Labeller(url, "ben")
        for name, reverse in ((anna, False), (ben, True)):
            for _ in range(3):
                task = name.next()
                assert task
                ranks = [int(answer[-1]) + 1 for answer in task["answers"]]
                assert name.rank(task, [5 - rank for rank in ranks] if reverse else ranks).ok
        with opened(browser, url) as page:
            page.get_by_role("link", name="Progress").click()
            expect(page.locator("#counts-list")).to_contain_text("3 / 4")
            expect(page.locator("#agreement")).to_contain_text("0.0% (n = 3)")  # three tasks tell no interval
            expect(page.locator("#agreement")).to_contain_text("72.6 ± 1.5 %")
            expect(page.locator("#agreement")).to_contain_text("−1.00 (n = 3)")
            expect(page.get_by_role("row", name=re.compile("^ben 3 3 0 3.5"))).to_be_visible()
            task = ben.next()
            assert task
            skip = {"showing": task["showing"], "submission": "0" * 8, "seconds": 1.0, "reason": "unclear"}
            assert ben.post("/api/skip", skip).ok
            expect(page.get_by_role("row", name="The prompt is unclear 1")).to_be_visible(timeout=8000)


def test_progress_of_pairs_says_who_wins(browser: Browser, tmp_path: Path) -> None:
    content = new_round(tmp_path, "pairs", tasks=4, answers=2)  # the second answer is that of ppo
    with collecting(content) as url:
        anna = Labeller(url, "anna")
        for _ in range(4):
            task = anna.take()
            assert anna.rank(task, [1 if answer.endswith(".1") else 2 for answer in task["answers"]]).ok
        with opened(browser, url) as page:
            page.get_by_role("link", name="Progress").click()
            expect(page.locator("#agreement")).to_contain_text("ppo preferred to sft")
            expect(page.locator("#agreement")).to_contain_text("100.0% (n = 4)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_rules_of_accessible_pages(
    browser: Browser, tmp_path: Path, kind: Kind, scheme: Any
) -> None:
    """Each page and each of its windows, in both schemes, against axe-core."""
    content = asks(
        tmp_path, ["At noon he"], ["answer one\n" * 20, "two", "three"][: ANSWERS[kind] or 1], kind
    )
    with (
        collecting(content, instructions="Be kind.") as url,
        opened(browser, url, name=None, color_scheme=scheme) as page,
    ):
        expect(page.get_by_role("dialog")).to_be_visible()
        assert violations(page) == []
        page.locator("#name").fill("anna")
        press(page, "Enter")
        expect(page.get_by_text("Be kind.")).to_be_visible()
        assert violations(page) == []
        page.locator("#guide button").click()
        expect(page.locator("#work .card").first).to_be_visible()
        background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 22, 21)"}[scheme]
        press(page, "Escape", "Enter")
        assert violations(page) == []
        for opens in ("?", "s"):
            press(page, opens)
            expect(page.get_by_role("dialog")).to_be_visible()
            assert violations(page) == []
            press(page, "Escape")
        press(page, {"rankings": "c", "demonstrations": "d"}.get(kind, "1"), "e", "Escape")
        assert violations(page) == []
        press(page, "Control+Enter")
        expect(page.locator(".end")).to_be_visible()
        assert violations(page) == []
        page.goto(f"{url}/progress")
        expect(page.locator("#progress")).to_be_visible()
        assert page.title() == "Tristage: progress"
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_edges_of_fields_stand_out(browser: Browser, tmp_path: Path, scheme: Any) -> None:
    """WCAG 1.4.11, which axe-core does not check: 3 to 1 against what is behind the field."""
    with labelling(browser, tmp_path, "demonstrations", color_scheme=scheme) as page:
        field = page.get_by_label("Your answer")
        edge = field.evaluate("its => getComputedStyle(its).borderTopColor")
        behind = page.locator(".card").first.evaluate("its => getComputedStyle(its).backgroundColor")
        assert contrast(edge, behind) >= 3


def contrast(colour: str, other: str) -> float:
    """The contrast of two colours as CSS writes them (WCAG 2.1, relative luminance)."""

    def light(text: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", text)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, bright = sorted((light(colour), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_a_screen_reader_gets_the_place_and_the_text_of_an_answer(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        text = texts(page)["C"]
        snapshot = card(page, "C").aria_snapshot()
        assert snapshot.startswith('- group "Answer C, third of four":')
        assert '- heading "Answer C" [level=3]' in snapshot and '- button "Move answer C up"' in snapshot
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        cards = {
            node["name"]["value"]: node
            for node in tree
            if node["role"]["value"] == "group" and node["name"]["value"]
        }
        assert cards["Answer C, third of four"]["description"]["value"] == text
        card(page, "C").focus()
        press(page, "1")
        said(page, "Answer C is now first of four.")
        assert page.get_by_role("status").aria_snapshot() == "- status: Answer C is now first of four."


def test_keys_of_one_letter_may_be_switched_off(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        press(page, "?")
        page.get_by_label("Keys of one letter, digit or sign").uncheck()
        press(page, "Escape")
        page.reload()  # the browser remembers it
        expect(card(page, "A")).to_be_focused()
        press(page, "4", "s", "c", "Enter")
        said(page, "Nothing is ordered yet.")
        assert list(texts(page)) == ["A", "B", "C", "D"]
        press(page, "Shift+ArrowDown")
        said(page, "Answer A is now second of four.")
        page.get_by_role("button", name="Keys").click()
        page.get_by_label("Keys of one letter, digit or sign").check()
        press(page, "Escape")
        card(page, "A").focus()
        press(page, "4")
        said(page, "Answer A is now fourth of four.")


@pytest.mark.parametrize(("kind", "button"), [("pairs", "This is better"), ("ratings", "5")])
def test_enter_submits_what_the_mouse_has_chosen(
    browser: Browser, tmp_path: Path, kind: Kind, button: str
) -> None:
    with labelling(browser, tmp_path, kind) as page:
        page.get_by_role("button", name=button).first.click()
        press(page, "Enter")
        saved(tmp_path, 1)


def test_a_name_stays_if_the_window_is_left(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path) as page:
        page.get_by_role("button", name="anna").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        press(page, "Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.get_by_role("button", name="anna").click()
        page.locator("#name").fill("O'Brien Zoe\u0308")
        press(page, "Enter")
        page.get_by_role("button", name="Begin").click()
        expect(page.locator("#me")).to_contain_text("O'Brien Zoë")


def test_a_reason_is_not_given_to_another_task(browser: Browser, tmp_path: Path) -> None:
    """The task expired while the person thought about the reason: what stands there now is another one."""
    with labelling(browser, tmp_path, refused=True) as page:
        page.clock.install()
        page.reload()
        expect(card(page, "A")).to_be_visible()
        first = texts(page)
        press(page, "s")
        expect(page.get_by_role("dialog")).to_be_visible()
        other = page.context.new_page()
        other.goto(page.url)
        expect(card(other, "A")).to_be_visible()
        press(other, "c", "Enter")
        said(other, "Saved.")
        page.clock.fast_forward(30_000)
        page.mouse.move(5, 5)  # the page asks each minute, if the person did something in the last one
        with page.expect_response("**/api/next"):
            page.clock.fast_forward(30_000)
        expect(page.locator("#fault")).to_contain_text("no longer open for you")
        press(page, "1")
        expect(page.get_by_role("dialog")).to_be_hidden()
        expect(page.locator("#fault")).to_contain_text("no longer open for you")
        assert texts(page) != first
        assert [type(one) for one in outcomes(tmp_path)] == [Submitted]


def test_two_people_in_two_browsers_compare_themselves(browser: Browser, tmp_path: Path) -> None:
    """Everyone gets the shared tasks, and nobody sees what the other has done."""
    content = new_round(tmp_path, tasks=12)
    with (
        collecting(content, Plan(overlap=1, again=0)) as url,
        opened(browser, url, "anna") as anna,
        opened(browser, url, "ben") as ben,
    ):
        assert texts(anna) != texts(ben)  # the order of tasks or answers is each person's own
        for done in range(12):
            for page in (anna, ben):
                shown = texts(page)
                ranks = {letter: 1 + int(text[-1]) for letter, text in shown.items()}
                if page is ben and done % 3 == 0:
                    ranks = {letter: 5 - rank for letter, rank in ranks.items()}
                for letter, rank in ranks.items():
                    card(page, letter).focus()
                    press(page, str(rank))
                press(page, "Enter")
                said_saved(page, done + 1, of=12)
        expect(anna.locator(".end")).to_be_visible()
        ben.get_by_role("link", name="Progress").click()
        expect(ben.locator("#counts-list")).to_contain_text("12 / 12")
        expect(ben.locator("#agreement")).to_contain_text("66.7% (41.7% to 91.7%, n = 12)")
    assert len(rankings(read_round(tmp_path))) == 24


def test_what_was_taken_back_outlives_the_server(browser: Browser, tmp_path: Path) -> None:
    content = new_round(tmp_path, tasks=3)
    with collecting(content) as url, opened(browser, url) as page:
        shown = texts(page)
        card(page, "D").focus()
        press(page, "1", "c", "Enter")
        said(page, "Task 2 of 3.")
        press(page, "u")
        said(page, "Your last submission is back.")
    with collecting(read_round(tmp_path)) as url, opened(browser, url) as page:  # without the draft
        assert texts(page) == {letter: shown[letter] for letter in "DABC"}
        press(page, "Enter")
        saved(tmp_path, 1)
        assert ranks_of(tmp_path) == {shown[letter]: rank for rank, letter in enumerate("DABC")}


def test_the_server_speaks_the_persons_language(browser: Browser, tmp_path: Path) -> None:
    with labelling(browser, tmp_path, locale="zh-CN", refused=True) as page:
        refusal = {"error": {"code": "wrong_kind", "message": "This round collects pairs."}}
        answers = [lambda route: route.fulfill(status=409, json=refusal)]
        page.route("**/api/submit", lambda route: answers.pop()(route) if answers else route.continue_())
        press(page, "c", "Enter")
        expect(page.locator("#fault")).to_have_text("服务器需要另一种回答。请刷新本页。")
        for number in range(1, 4):
            press(page, "c", "Enter")
            said(page, f"已保存。 任务 {number + 1} / 3。" if number < 3 else "已保存。 目前没有")
            saved(tmp_path, number)
        expect(page.locator(".end")).to_contain_text("目前没有您的任务了")
        page.get_by_label("语言").select_option("en")
        expect(page.locator(".end")).to_contain_text("No task is left for you now.")


def test_less_motion(browser: Browser, tmp_path: Path) -> None:
    moving = "() => document.getAnimations().length"
    for preference, glides in (("reduce", False), ("no-preference", True)):
        folder = tmp_path / preference
        with labelling(browser, folder, reduced_motion=preference) as page:
            press(page, "4")
            assert (page.evaluate(moving) > 0) == glides


def test_all_words_are_in_both_languages() -> None:
    english, chinese = json.loads((PAGE / "texts.json").read_text()).values()
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert len(text) == len(chinese[key]) if isinstance(text, list) else True
        names = (sorted(re.findall(r"\{\w+\}", str(its))) for its in (text, chinese[key]))
        assert len({tuple(its) for its in names}) == 1, key
    code = "\n".join(file.read_text() for file in PAGE.glob("*.*") if file.suffix in (".js", ".html"))
    asked = re.findall(r'(?:say|known)\("(\w+)"|data-(?:text|label|title)="(\w+)"', code)
    assert {first or second for first, second in asked} <= english.keys()
