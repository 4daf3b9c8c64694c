"""The page in a real browser: no errors, no requests, both themes, the inspector with mouse and keyboard."""

import json
import os
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from made_up import make_run
from made_up_arms import make_arm_run
from PIL import Image
from test_page import HOSTILE, make_hostile

from opdlight.report.build import report
from opdlight.report.curves import CURVES

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian, Ubuntu: tools/setup_browser.sh)"),
]


@dataclass
class Seen:
    """A page, and what happened on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    with api.sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, as which many containers run
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(str(make_run(tmp_path_factory.mktemp("small") / "one", updates=20, trajectories=24)))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opdlight.report.build.sections", lambda runs: [])  # figures take most of the time
        return report(str(make_run(tmp_path_factory.mktemp("large") / "one", updates=20, trajectories=1000)))


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arms")
    for k, seed in [(k, seed) for k in range(8) for seed in (1, 2)]:
        success = {"sums": [[0, 0], [1, seed - 1], [1, int(k > 3)]]}
        make_arm_run(folder / f"{k}-{seed}", seed=seed, success=success, config={"loss": {"k": k}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opdlight.report.arms.figures.CURVES", CURVES[:1])  # figures take most of the time
        return report(str(folder))


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    contexts = []

    def go(file: Path, *, hash: str = "", width: int = 1400, scheme: str = "light") -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        seen = Seen(context.new_page())
        seen.page.on("console", lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") else None)
        seen.page.on("pageerror", lambda error: seen.errors.append(str(error)))
        seen.page.on("request", lambda r: seen.requests.append(r.url))
        seen.page.goto(file.as_uri() + hash)
        return seen

    yield go
    for context in contexts:
        context.close()


def trajectories(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (file.parents[1] / "trajectories.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_loads_without_an_error_or_a_request(small: Path, visit: Any, scheme: str, width: int) -> None:
    seen = visit(small, width=width, scheme=scheme)
    assert seen.page.is_visible("text=Held-out success")
    background = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(background) == {"light": "rgb(244, 245, 248)", "dark": "rgb(15, 19, 25)"}[scheme]
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    before = seen.page.evaluate(ink)
    seen.page.click("#theme")
    assert seen.page.evaluate(background) == {"dark": "rgb(244, 245, 248)", "light": "rgb(15, 19, 25)"}[scheme]
    assert seen.page.evaluate(ink) != before  # the figures follow
    seen.page.reload()
    assert seen.page.evaluate(background) == {"dark": "rgb(244, 245, 248)", "light": "rgb(15, 19, 25)"}[scheme]
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.page.click("#tab-inspector")
    assert seen.page.is_visible("#transcript")
    assert seen.page.is_hidden("#view-report")
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert seen.errors == []
    assert [url for url in seen.requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in seen.requests if url.startswith("file:")]) == 2  # the page, and once more


def test_the_outcome_table_fits(small: Path, tmp_path: Path, visit: Any) -> None:
    two = [str(small.parents[1]), str(make_run(tmp_path / "two", updates=5, trajectories=2))]
    for page in (small, report(two, str(tmp_path / "both.html"))):
        seen = visit(page)
        for width in (1400, 1250, 1200, 1090, 1000, 900, 800, 701):
            seen.page.set_viewport_size({"width": width, "height": 900})
            card = "document.querySelector('#outcome .scroll')"
            assert seen.page.evaluate(f"{card}.scrollWidth - {card}.clientWidth") <= 0, (page, width)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "dark"), (420, "light")])
def test_the_arms_that_are_chosen_have_the_colours(arms: Path, visit: Any, width: int, scheme: str) -> None:
    seen = visit(arms, width=width, scheme=scheme)

    def pressed() -> list[str]:
        found = seen.page.locator(".chips").first.locator('.chip[aria-pressed="true"]')
        return [str(chip.get_attribute("data-arm")) for chip in found.all()]

    def stroke(arm: int) -> str:
        return str(seen.page.eval_on_selector(f'svg .line[data-arm="{arm}"] path', "e => getComputedStyle(e).stroke"))

    assert pressed() == list("012345") and seen.count(".chip") == 16  # above both groups of figures
    assert stroke(6) == stroke(7) != stroke(0) != stroke(1)
    freed, muted = stroke(2), stroke(6)
    seen.page.click('.chip[data-arm="2"] >> nth=0')
    seen.page.click('.chip[data-arm="7"] >> nth=1')
    assert pressed() == list("013457") and (stroke(7), stroke(2)) == (freed, muted)
    seen.page.click('.chip[data-arm="6"] >> nth=0')  # there are six colours: the first that was chosen gives its own
    assert pressed() == list("134567") and stroke(0) == muted
    assert seen.page.is_hidden('svg .band[data-arm="0"] >> nth=0') and seen.count('svg .band[data-arm="1"]')
    titles = seen.page.locator('svg .line[data-arm="3"] title').all_text_contents()
    assert {*titles} == {"loss.k=3"}
    assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (seen.errors, len(seen.requests)) == ([], 1)


def test_the_tabs_work_by_keys(small: Path, visit: Any) -> None:
    seen = visit(small)
    seen.page.focus("#tab-report")
    seen.press("ArrowRight")
    assert seen.page.is_visible("#view-inspector")
    assert seen.page.evaluate("document.activeElement.id") == "tab-inspector"
    seen.press("n")  # the inspector's own keys work from here too
    assert seen.count('.tok[aria-current="true"]') == 1
    seen.page.focus("#tab-inspector")
    seen.press("ArrowLeft")
    assert seen.page.is_visible("#view-report")


def test_filters_and_order(small: Path, visit: Any) -> None:
    seen, rows = visit(small, hash="#inspector"), trajectories(small)
    assert seen.text("#matches") == "24 of 24"
    assert seen.page.is_hidden("#f-run")  # of one run there is nothing to choose
    seen.page.select_option("#f-task", "alfworld")
    assert seen.text("#matches") == "12 of 24"
    seen.page.select_option("#f-status", "success")
    seen.page.select_option("#f-stage", "train")
    wanted = [r for r in rows if (r["task"], r["status"], r["stage"]) == ("alfworld", "success", "train")]
    assert seen.text("#matches") == f"{len(wanted)} of 24"
    assert f"seed {wanted[0]['seed']}" in seen.text("#heading")
    seen.page.select_option("#f-update", str(wanted[0]["update"]))
    assert seen.text("#matches") == f"{sum(r['update'] == wanted[0]['update'] for r in wanted)} of 24"
    seen.page.select_option("#f-stage", "val")
    assert seen.text("#matches") == "0 of 24"
    assert "No trajectory matches" in seen.text("#list")
    assert (seen.count(".tok[data-n]"), seen.text("#heading")) == (0, "")
    seen.press("n", "j", "ArrowRight")  # nothing to move over
    seen.page.click("#reset")
    assert seen.text("#matches") == "24 of 24"

    def worst(row: dict[str, Any]) -> float:
        columns = [zip(t["student"], t["teacher"], t["kept"], strict=True) for t in row["turns"]]
        return max((abs(q - p) for column in columns for p, q, kept in column if kept), default=0)

    seen.page.select_option("#sort", "worst")
    assert seen.page.get_attribute(".option", "aria-selected") == "true"
    assert f"seed {max(rows, key=worst)['seed']}" in seen.text("#heading")
    assert seen.errors == []


def test_a_walk_with_the_keys(small: Path, visit: Any) -> None:
    seen, rows = visit(small, hash="#inspector"), trajectories(small)
    seen.page.select_option("#f-task", "sums")
    mine = [r for r in rows if r["task"] == "sums"]
    seen.page.focus("#list")
    seen.press("j", "ArrowDown", "k")
    assert f"seed {mine[1]['seed']}" in seen.text("#heading")
    assert seen.page.get_attribute("#list", "aria-activedescendant") == f"option-{rows.index(mine[1])}"
    (turn,) = mine[1]["turns"]
    assert seen.count(".tok[data-n]") == len(turn["ids"])
    assert seen.count(".tok.masked[data-n]") == turn["kept"].count(False) > 0

    seen.press("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight")
    focused = "document.activeElement.dataset.n"
    assert seen.page.evaluate(focused) == "1"
    assert seen.count('[aria-current="true"]') == 1
    assert "token 2 of" in seen.text("#detail")
    assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def order(key: str) -> list[int]:
        sizes = {
            "ratio": [abs(q - p) for p, q in zip(turn["student"], turn["teacher"], strict=True)],
            "divergence": turn["divergence"],
            "coverage": [1 - m for m in turn["mass"]],
        }[key]
        return sorted((i for i in range(len(sizes)) if turn["kept"][i]), key=lambda i: -sizes[i])

    seen.page.locator("body").press("j")
    seen.page.locator("body").press("k")
    walked = []
    for key in ("n", "n", "n", "p"):
        seen.press(key)
        walked.append(int(seen.page.evaluate(focused)))
    ratio = order("ratio")
    assert walked == [ratio[0], ratio[1], ratio[2], ratio[1]]
    for key, mode in (("2", "divergence"), ("3", "coverage"), ("1", "ratio")):
        seen.press(key)
        assert seen.page.is_checked(f'input[value="{mode}"]')
        seen.press("k", "j", "n")  # from anew
        assert int(seen.page.evaluate(focused)) == order(mode)[0]
        strength = [
            float(seen.page.eval_on_selector(f'[data-n="{i}"]', "e => e.style.getPropertyValue('--a')"))
            for i in order(mode)
        ]
        assert strength == sorted(strength, reverse=True)
        assert strength[0] > 0

    seen.press("j", "k")
    seen.page.focus('input[value="ratio"]')
    seen.press("ArrowRight")  # among the radio buttons, not among the tokens
    assert seen.page.is_checked('input[value="divergence"]')
    assert seen.count('[aria-current="true"]') == 0

    seen.press("?")
    assert seen.page.is_visible("#help")
    seen.press("j", "x")  # stays
    assert f"seed {mine[1]['seed']}" in seen.text("#heading")
    seen.press("Escape")
    assert seen.page.is_hidden("#help")
    seen.press("x")  # no key of ours
    assert seen.errors == []


def test_pointing_at_a_token_shows_both_models_candidates(small: Path, visit: Any) -> None:
    rows = trajectories(small)
    at = next(i for i, r in enumerate(rows) if r["task"] == "sums")
    seen, turn = visit(small, hash=f"#t{at}"), rows[at]["turns"][0]
    assert f"seed {rows[at]['seed']}" in seen.text("#heading")
    seen.press("ArrowRight")
    seen.page.hover('[data-n="4"]')
    assert "token 5 of" in seen.text("#detail")
    for n, name in enumerate(("student_top", "teacher_top")):
        cells = seen.page.locator(".candidates").nth(n).locator("tbody tr")
        assert cells.count() == 5
        for i, (text, own, other) in enumerate(turn[name][4]):
            shown = cells.nth(i).locator("th code, td").all_inner_texts()
            assert shown[0].removeprefix("▸ ") == text.replace(" ", "␣").replace("\n", "⏎")
            own, other = (2.718281828459045**x for x in (own, other))
            for cell, p in zip(shown[1:], (own, other) if n == 0 else (other, own), strict=True):
                assert float(cell.replace("<", "").removesuffix(" %")) == pytest.approx(100 * p, abs=0.06)
    assert f"{turn['engine'][4]:.3f}".replace("-", "−") in seen.text("#detail")
    masked = turn["kept"].index(False)
    seen.page.hover(f'[data-n="{masked}"]')
    assert "left out of the loss by the mask" in seen.text("#detail")
    seen.page.hover("#heading")
    assert "token 1 of" in seen.text("#detail")  # back to the selected one
    blanks = [i for i, t in enumerate(turn["text"]) if t.isspace()]
    assert [seen.text(f'[data-n="{i}"]') for i in blanks] == ["␣", "⏎"]
    assert seen.count(".tokens br") == 1  # a line ends where the student ended it
    assert seen.text(".observation pre") == turn["prompt"]
    assert seen.text(".observation .control") == turn["prompt"][0]
    assert seen.count(".tokens .control") == sum(turn["control"])


def test_long_observations_are_folded(small: Path, visit: Any) -> None:
    rows = trajectories(small)
    at = next(i for i, r in enumerate(rows) if len(r["turns"]) > 5 and r["task"] == "alfworld")
    seen, prompts = visit(small, hash=f"#t{at}"), [turn["prompt"] for turn in rows[at]["turns"]]
    (long,) = [n for n, prompt in enumerate(prompts) if len(prompt) > 1200]
    blocks = seen.page.locator(".observation")
    assert [blocks.nth(n).locator("details").count() for n in range(len(prompts))] == [
        n == long for n in range(len(prompts))
    ]  # short ones are whole
    block, rest = blocks.nth(long), blocks.nth(long).locator("details pre")
    head = "".join(prompts[long].splitlines(keepends=True)[:12])
    assert block.locator("pre").first.text_content() == head
    # the rest is there for the browser to find, as text and with its control tokens marked
    assert "".join(block.locator("pre").all_text_contents()) == prompts[long]
    assert block.locator(".control").all_text_contents() == [prompts[long][0]]
    left = len(prompts[long]) - len(head)
    summary = block.locator("summary")
    assert summary.inner_text() == f"… 34 more lines, {left:,} characters"
    assert not rest.is_visible()
    summary.click()
    assert rest.is_visible()
    assert summary.inner_text() == f"fold 34 lines, {left:,} characters"
    seen.press("Enter")  # it has the focus
    assert not rest.is_visible()
    tokens = seen.count(".tok[data-n]")
    seen.press("n")  # the other keys work from here, too
    assert "token" in seen.text("#detail")
    seen.press("o", "k", "j")  # also of the trajectories that are opened next
    assert rest.is_visible()
    assert seen.count(".tok[data-n]") == tokens
    seen.press("o")
    assert not rest.is_visible()
    seen.page.emulate_media(media="print")
    seen.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert rest.is_visible() and not summary.is_visible()
    assert seen.page.evaluate("document.getElementById('transcript').scrollHeight") == pytest.approx(
        seen.page.evaluate("document.getElementById('transcript').clientHeight"), abs=2
    )  # all of it, not a window to scroll
    seen.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not rest.is_visible()
    assert seen.count(".completion .pill") == sum(
        turn["metrics"][f"{kind}_actions"] > 0
        for turn in rows[at]["turns"]
        for kind in ("inadmissible", "unparsable", "ineffective")
    )
    assert seen.errors == []


def test_a_thousand_trajectories_draw_only_what_is_in_sight(large: Path, visit: Any) -> None:
    seen, rows = visit(large, hash="#inspector"), trajectories(large)
    assert seen.text("#matches") == "1000 of 1000"
    nodes = "document.querySelectorAll('#view-inspector *').length"
    assert seen.page.evaluate(nodes) < 1500
    seen.page.evaluate("document.getElementById('list').scrollTop = 62 * 500")
    seen.page.wait_for_selector("#option-503")
    assert seen.count(".option") < 40
    seen.page.click("#option-503")
    assert f"seed {rows[503]['seed']}" in seen.text("#heading")
    seen.page.select_option("#f-task", "alfworld")
    assert seen.text("#matches") == "500 of 1000"
    seen.page.focus("#list")
    seen.press(*["j"] * 30)
    index = rows.index([r for r in rows if r["task"] == "alfworld"][251 + 30])
    assert f"seed {rows[index]['seed']}" in seen.text("#heading")
    assert seen.page.is_visible(f"#option-{index}")  # scrolled along
    assert seen.page.evaluate(nodes) < 1500
    assert seen.errors == []


def test_the_pictures_of_the_readme(small: Path, browser: Any, tmp_path: Path) -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "make_pictures.py"))
    tool["take"](browser, small, tmp_path, "sums")
    with Image.open(tmp_path / "report.webp") as report, Image.open(tmp_path / "inspector.webp") as inspector:
        assert (report.width, *inspector.size) == (2600, 2600, 1600)
        assert report.height > 1600  # down to the first curves


def test_hostile_text_does_not_execute(tmp_path: Path, visit: Any) -> None:
    seen = visit(report(str(make_hostile(tmp_path / "run"))), hash="#t0")
    for i, text in enumerate(HOSTILE):
        seen.page.hover(f'[data-n="{i}"]')
        assert "token" in seen.text("#detail")
        if text.isprintable() and text.isascii():
            assert seen.page.evaluate(f"document.querySelector('[data-n=\"{i}\"]').textContent") == text
    assert seen.page.evaluate("window.hacked") is None
    assert seen.count("img") == 0
    assert "⟨U+202E⟩" in seen.text("#transcript")
    seen.page.click("#tab-report")
    assert "<img src=x" in seen.text("#tokens")
    assert seen.errors == []
    assert len(seen.requests) == 1
