"""Pictures of a report for a page, in light and in dark: FILE-light.png and FILE-dark.png.

python -m docs.generators.page_picture runs/demo/report/index.html docs/images/demo-report --height 1270
python -m docs.generators.page_picture runs/demo/report/index.html docs/images/reward-model --section "Is the"

It needs Chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

COLOURS = 64  # of the palette, so that a picture has some tens of kilobytes
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("page", type=Path, help="the HTML file")
    parser.add_argument("file", type=Path, help="the picture, without -light.png")
    parser.add_argument("--width", type=int, default=1000, help="of the window, in pixels")
    parser.add_argument("--height", type=int, default=1270, help="of the picture, at most")
    parser.add_argument(
        "--section", help="begins the title of the one section to show; default: the page's top"
    )
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-quic"]
        )
        for scheme in SCHEMES:
            file = options.file.with_name(f"{options.file.name}-{scheme}.png")
            shot = Image.open(BytesIO(picture(browser, scheme, options)))
            shot.quantize(COLOURS).save(file, optimize=True)
            print(f"wrote {file}", file=sys.stderr)
        browser.close()


def picture(browser: Browser, scheme: Literal["light", "dark"], options: argparse.Namespace) -> bytes:
    """A PNG of the page, or of one of its sections, in one colour scheme."""
    page = browser.new_page(viewport={"width": options.width, "height": 900}, color_scheme=scheme)
    page.goto(options.page.resolve().as_uri())
    box: dict[str, float] = {"x": 0, "y": 0, "width": options.width, "height": options.height}
    if options.section:
        title = page.locator("h2").filter(has_text=options.section).first
        section = page.locator("section").filter(has=title).first
        found = section.bounding_box()
        assert found is not None
        box = {**found, "height": min(found["height"], options.height)}  # type: ignore[dict-item]
    shot = page.screenshot(full_page=True, clip=box)  # type: ignore[arg-type]
    page.close()
    return shot


if __name__ == "__main__":
    main()
