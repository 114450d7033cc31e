"""The labelling page in the system's Chromium: open it, read it, press its keys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
PATIENCE = 20_000  # milliseconds: both cores may be busy, and the page's retries wait longer and longer
expect.set_options(timeout=PATIENCE)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium, while the context is open."""
    with sync_playwright() as playwright:
        # Root has no sandbox in a container; the only page is ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Browser, url: str, name: str | None = "anna", refused: bool = False, **options: Any
) -> Iterator[Page]:
    """The page, which must not log an error or ask another server. `name` signs in, and reads on."""
    context, faults = browser.new_context(**{"locale": "en-GB"} | options), []
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if is_fault(message) else None)
    page.on("request", lambda request: None if request.url.startswith(url) else faults.append(request.url))
    page.goto(url)
    if name:
        page.locator("#name").fill(name)
        page.keyboard.press("Enter")
        page.locator("#guide button").click()
        expect(page.locator("#work .card, #work .end").first).to_be_visible()
    yield page
    assert refused or faults == []
    context.close()


def is_fault(message: ConsoleMessage) -> bool:
    return message.type == "error"


def texts(page: Page) -> dict[str, str]:
    """The text of each answer by its letter."""
    cards = page.locator(".card:has(.grip)").all()
    return {card.locator("h3").inner_text().split()[-1]: card.locator(".text").inner_text() for card in cards}


def card(page: Page, letter: str) -> Locator:
    return page.locator(".card", has=page.get_by_role("heading", name=f"Answer {letter}"))


def said(page: Page, text: str) -> None:
    expect(page.locator("#said")).to_contain_text(text)


def said_saved(page: Page, done: int, of: int) -> None:
    """Wait until the page has saved the task number `done`, and shows the next one: keys count again."""
    said(page, f"Saved. Task {done + 1} of {of}." if done < of else "Saved. No task is left")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
