"""The server's page in a browser: two policies on one prompt and seed, by keyboard, in light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.support.accessibility import violations
from tests.support.labelling_page import CHROMIUM, chromium
from tests.unit.apps.server import Address

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no program `chromium` is on PATH")
PROMPT = "My cat is sick."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Address) -> Iterator[Page]:
    """The page, which must not log an error or ask another server."""
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
    page.on(
        "request", lambda request: None if request.url.startswith(server.url) else faults.append(request.url)
    )
    page.goto(server.url)
    expect(page.locator(".policy").nth(1)).to_have_value("ppo")
    yield page
    assert faults == []
    page.close()


def is_fault(message: ConsoleMessage) -> bool:
    """A refusal of the server is no fault of the page."""
    return message.type == "error" and "status of 400" not in message.text


def answers(page: Page) -> list[str]:
    for number in (0, 1):
        expect(page.locator(".note").nth(number)).to_contain_text("score", timeout=20_000)
    return [page.locator(".text").nth(number).inner_text() for number in (0, 1)]


def test_two_policies_answer_with_one_seed_and_are_scored(page: Page, server: Address) -> None:
    """By the keyboard alone: the prompt has the focus, and Ctrl-Enter answers."""
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    seen = answers(page)
    for policy, text in zip(("sft", "ppo"), seen, strict=True):
        turn = {"role": "user", "content": PROMPT}
        body = {"model": policy, "messages": [turn], "seed": 1}
        response = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert text.split() == response.split()
    for column in page.locator(".policy").all():
        column.select_option("base")
    page.get_by_role("button", name="Answer").press("Enter")
    expect(page.locator(".note").first).to_be_empty()
    first, second = answers(page)
    assert first == second


def test_escape_stops(page: Page, server: Address) -> None:
    page.get_by_label("Longest answer").fill("400")
    for policy in page.locator(".policy").all():
        policy.select_option("base")
    page.get_by_label("Prompt").fill(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    expect(page.locator("#fault")).to_be_empty()


def test_an_error_is_told(page: Page) -> None:
    page.get_by_label("Prompt").fill("cat " * 2000)
    with page.expect_response("**/v1/chat/completions"):
        page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("window of 512")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_keeps_the_rules_of_accessible_pages(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 22, 21)"}[scheme]
    assert violations(page) == []
    page.get_by_label("Prompt").fill("cat " * 2000)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("window of 512")
    assert violations(page) == []
    page.get_by_label("Prompt").fill(PROMPT)
    page.keyboard.press("Control+Enter")
    answers(page)
    assert violations(page) == []


def test_a_narrow_window_has_one_column_and_no_sideways_scrolling(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    boxes: list[Any] = [column.bounding_box() for column in page.locator(".column").all()]
    first, second = boxes
    assert first["x"] == second["x"] and first["y"] < second["y"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
