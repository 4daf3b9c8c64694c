"""Make the README's pictures of the report and of the inspector: `python tools/make_pictures.py <run folder>`.

Builds the report of a finished run, opens it in Chromium and writes docs/report.webp (outcome, alarms and the first
curves) and docs/inspector.webp: the recorded trajectory that holds the token about which the models disagree most, with
that token selected; `--task` narrows the choice. Look at the pictures before you commit them. Needs Chromium
(`tools/setup_browser.sh`).

Example: python tools/make_pictures.py runs/latest --task alfworld
"""

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from opdlight.errors import OpdError
from opdlight.report.build import report
from opdlight.system.arguments import argument_parser

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HEIGHT = 1300, 800  # of the window, in CSS pixels; the pictures have twice as many
LIMIT = 200_000  # bytes of one picture


def write(file: Path, png: bytes) -> None:
    """Write a screenshot as WebP."""
    Image.open(io.BytesIO(png)).convert("RGB").save(file, quality=80)
    size = file.stat().st_size
    print(f"{file}: {size / 1000:.0f} kB")
    if size > LIMIT:
        raise SystemExit(f"{file}: expected at most {LIMIT // 1000} kB, but got {size / 1000:.0f} kB")


def take(browser: Any, page: Path, out: Path, task: str | None) -> None:
    """Open the page and write both pictures."""
    seen = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", device_scale_factor=2)
    seen.goto(page.as_uri())
    bottom = seen.evaluate("document.querySelector('#curves figure').getBoundingClientRect().bottom")
    shown = {"x": 0, "y": 0, "width": WIDTH, "height": bottom + 16}
    write(out / "report.webp", seen.screenshot(full_page=True, clip=shown))

    seen.click("#tab-inspector")
    if task is not None:
        seen.select_option("#f-task", task)
    seen.select_option("#sort", "worst")
    seen.locator("body").press("n")  # selects the worst token, so that both models' candidates are shown
    seen.evaluate("document.querySelector('.tok[aria-current]').scrollIntoView({block: 'center'})")
    write(out / "inspector.webp", seen.screenshot())


def main(run: Path, out: Path, task: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = report(str(run), out=str(Path(folder) / "index.html"))
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if chromium is None:
            raise SystemExit("needs chromium on the PATH (Debian, Ubuntu: tools/setup_browser.sh)")
        try:
            from playwright.sync_api import sync_playwright
        except ModuleNotFoundError:
            raise SystemExit("needs playwright, which `make setup-dev` installs") from None
        out.mkdir(parents=True, exist_ok=True)
        with sync_playwright() as playwright:
            # Chromium's own sandbox does not work for root, as which many containers run
            sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = playwright.chromium.launch(executable_path=chromium, args=[*sandbox, "--hide-scrollbars"])
            take(browser, page, out, task)
            browser.close()


if __name__ == "__main__":
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder for the pictures (default: docs)")
    parser.add_argument("--task", help="show a trajectory of this task in the inspector (default: of any)")
    options = parser.parse_args()
    try:
        main(options.run, options.out, options.task)
    except OpdError as error:
        raise SystemExit(str(error)) from None
