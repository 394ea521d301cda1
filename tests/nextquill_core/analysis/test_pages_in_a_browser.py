"""The pages in a real browser: the report, and those of `explain` and `compare`.

With NEXTQUILL_SCREENSHOTS=DIR screenshots go there.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nextquill_core.analysis import figures, report_figures
from nextquill_core.analysis.comparison_page import comparison_html
from nextquill_core.analysis.example_view import ExplainedExample, TargetToken, example_html, people_of
from nextquill_core.analysis.report import Report, draw, render
from nextquill_core.analysis.token_colours import Unit
from nextquill_core.evaluation.metrics import METRICS
from nextquill_core.schemas import Example, Item, Review
from tests.browser import BROWSER, DRIVER, chromium
from tests.nextquill_core.analysis.rows import row
from tests.nextquill_core.analysis.test_comparison_page import COMPARISON
from tests.nextquill_core.analysis.test_comparison_page import row as compared_row
from tests.nextquill_core.analysis.test_example_view import EVIL, explained
from tests.nextquill_core.analysis.test_report import hostile_report, small_report
from tests.nextquill_core.analysis.test_report_figures import difference

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]

WIDTHS, SCHEMES = (1400, 400), ("light", "dark")
USERS, METHODS = 4000, ("nextquill", "contextsft", "sft", "latestk", "qwen", "steered", "dpl", "oppu")
LARGEST_BYTES, LONGEST_S = 10_000_000, 2.0

# Returns the texts whose contrast is below that of WCAG AA, and how many were measured. Every part is opened before.
CONTRAST = """
for (const part of document.querySelectorAll('details')) part.open = true;
const parse = (text) => {
  const [r, g, b, a = 1] = (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  return text === 'none' || text === 'transparent' ? [0, 0, 0, 0] : [r, g, b, a];
};
const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]);
const above = (one) => { const all = []; for (let up = one; up; up = up.parentElement) all.push(up); return all; };
const light = (colour) => {
  const [r, g, b] = colour.map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const faults = [];
let count = 0;
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const one = node.parentElement;
  if (!node.data.trim() || one.closest('script, noscript, datalist') || !one.checkVisibility()) continue;
  const style = getComputedStyle(one), vector = one instanceof SVGElement;
  const grounds = above(one).reverse().map((up) => parse(getComputedStyle(up).backgroundColor));
  const ground = grounds.reduce((below, top) => over(top, below), [255, 255, 255]);
  const colour = parse(vector ? style.fill : style.color);
  colour[3] *= above(one).reduce((all, up) => all * getComputedStyle(up).opacity, 1);
  const [low, high] = [light(over(colour, ground)), light(ground)].sort((a, b) => a - b);
  const size = parseFloat(style.fontSize) * (vector ? one.getScreenCTM().a : 1);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const ratio = (high + 0.05) / (low + 0.05);
  count += 1;
  if (ratio < (large ? 3 : 4.5)) faults.push([node.data.trim().slice(0, 40), `${one.className}`, ratio.toFixed(2)]);
}
return [faults, count];
"""
WIDER = """
return [...document.querySelectorAll('body *')].filter((one) => !one.parentElement.closest('.scroll, svg, pre'))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.tagName + '.' + one.className);
"""
VISIBLE = """
const [text] = arguments;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode())
  if (node.data.includes(text) && !node.parentElement.closest('script') && node.parentElement.checkVisibility())
    return true;
return false;
"""


@dataclass
class Viewer:
    """A browser that opens pages from files, and the folder for them."""

    driver: Any
    folder: Path

    def open(self, name: str, html: str) -> str:
        """Write a page and open it; returns its URL."""
        path = self.folder / f"{name}.html"
        path.write_text(html, encoding="utf-8")
        self.driver.get(path.as_uri())
        return path.as_uri()

    def command(self, name: str, **values: Any) -> dict[str, Any]:
        """Send a command of DevTools."""
        answer: dict[str, Any] = self.driver.execute_cdp_cmd(name, values)
        return answer

    def screen(self, width: int, scheme: str = "light", media: str = "") -> None:
        """Show the page on a screen of this width with this colour scheme, or as on paper."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", media=media, features=wanted)

    def shot(self, name: str) -> None:
        """Save a picture of the whole page, if pictures are wanted."""
        if folder := os.environ.get("NEXTQUILL_SCREENSHOTS"):
            found = self.command("Page.captureScreenshot", captureBeyondViewport=True)
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(found["data"]))

    def ask(self, script: str, *values: Any) -> Any:
        """Return what a script returns."""
        return self.driver.execute_script(script, *values)

    def read_on_every_screen(self, name: str) -> None:
        """Check that only the inside of scrollers is wider than a screen, and that texts have enough contrast."""
        for scheme in SCHEMES:
            for width in WIDTHS:
                self.screen(width, scheme)
                self.shot(f"{name}-{width}-{scheme}")
                assert self.ask(WIDER) == [], width
                assert self.ask("return document.documentElement.scrollWidth") <= width
            faults, count = self.ask(CONTRAST)
            assert faults == [], scheme
            assert count > 20

    def requests(self) -> set[str]:
        """Return the URLs that were requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def tab_to(self, selector: str) -> None:
        """Press Tab until an element has the focus that matches a CSS selector."""
        from selenium.webdriver.common.keys import Keys

        for _ in range(150):
            self.press(Keys.TAB)
            if self.ask("return document.activeElement.matches(arguments[0])", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    def wait_for(self, script: str, *values: Any) -> None:
        """Wait until a script returns something true."""
        deadline = time.monotonic() + 60
        while not self.ask(script, *values):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with chromium(tmp_path_factory.mktemp("profile"), logs=True) as driver:
        yield Viewer(driver, tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with figures of every kind."""
    methods = ("nextquill", "contextsft")
    rows = [row(method, metric, 0.2, decoding="sane") for method in methods for metric in METRICS]
    gains = {"personal_gain": "own minus a stranger's", "history_gain": "own minus no history"}
    groups = {"a": {"8–15": row("a", "personal_gain", 0.1), "16–31": row("a", "personal_gain", 0.2)}}
    share = {"method": "nextquill", "history": "own", "value": 0.4, "ci_low": 0.3, "ci_high": 0.5}
    forest = report_figures.forest_plot(
        [difference("personal_gain", 0.02), difference("rouge1", 0.005), difference("bleu", -2.0)]
    )
    curve = [{"step": step, "loss": 2.0, "normal": 1.5, "causal": 0.5} for step in range(60)]
    effects = figures.effect_panels({"Books": [5, 9, 2]}, [-1, -0.01, 0.05, 1], 0.05)
    drawn = {
        "forest": forest,
        "gains": report_figures.gain_plot(rows, gains),
        "groups": report_figures.bucket_plot([("By length", ["8–15", "16–31"], groups)], "nats"),
        "calibration": report_figures.calibration_plot([(0.0, 0.1, 5), (0.2, 0.15, 5)]),
        "share": report_figures.share_plot([share], 0.91, 0.25),
        "bars": figures.metric_bars(rows, "sane", "Books", highlight="nextquill"),
        "effects": effects,
        "training": figures.training_curves({"nextquill": curve, "contextsft": curve}),
    }
    shown = {name: draw(name, figure, name.capitalize(), f"a figure of {name}") for name, figure in drawn.items()}
    return replace(
        small_report(),
        rows=rows,
        forests=[shown["forest"]],
        history_figures=[shown["gains"], shown["groups"]],
        truth_figures=[shown["calibration"], shown["share"]],
        scores_figures=[shown["bars"]],
        effect_figures=[shown["effects"]],
        training_figures=[shown["training"]],
        person=people_of(
            [explained(f"user{n}", 0.1 * n, f"The {n} grim harbours of a haunting book. ") for n in range(4)]
        ),
    )


@pytest.fixture(scope="module")
def pages(report: Report) -> dict[str, str]:
    """The pages by name, those with hostile texts too."""
    evil = compared_row(method=EVIL, category=EVIL, decoding=EVIL)
    return {
        "report": render(report),
        "explain": example_html([explained("user1", 0.1, "A grim harbour in a haunting book. ")] * 2),
        "compare": comparison_html(COMPARISON),
        "hostile-report": render(hostile_report()),
        "hostile-explain": example_html([explained(EVIL, 0.1)]),
        "hostile-compare": comparison_html(replace(COMPARISON, rows=[evil], notes=[EVIL])),
    }


@pytest.mark.parametrize(
    "name", ["report", "explain", "compare", "hostile-report", "hostile-explain", "hostile-compare"]
)
def test_a_page_is_quiet_readable_and_fits_the_screen(viewer: Viewer, pages: dict[str, str], name: str) -> None:
    viewer.requests()
    url = viewer.open(name, pages[name])
    viewer.read_on_every_screen(name)
    assert viewer.driver.get_log("browser") == []
    assert viewer.requests() == {url}
    if name.startswith("hostile"):
        assert viewer.ask("return document.querySelectorAll('img, iframe, [onerror]').length") == 0
        assert viewer.ask(VISIBLE, "<script>alert(1)</script>")
        assert "\x1b" not in viewer.ask("return document.body.textContent")


def test_the_report_is_used_by_keyboard_alone(viewer: Viewer, pages: dict[str, str]) -> None:
    from selenium.webdriver.common.keys import Keys

    viewer.screen(1400)
    viewer.open("keyboard", pages["report"])
    viewer.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(viewer.folder / "saved"))

    viewer.tab_to("nav a[href='#person']")
    viewer.press(Keys.ENTER)
    assert viewer.ask("return location.hash") == "#person"
    viewer.tab_to(".tokens-of-review")
    viewer.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert (
        viewer.ask("return document.activeElement.nextSibling === null && document.activeElement.className")
        == "preferred"
    )
    facts = "return document.querySelector('.tokens-of-review').nextElementSibling.textContent"
    assert "effect +0.3000: 0.8000 with history" in viewer.ask(facts)

    viewer.tab_to("#person-name")
    viewer.press(*"user2", Keys.TAB)
    viewer.wait_for("return document.querySelector('#person-state').textContent === 'User 3 of 4'")
    assert viewer.ask("return document.activeElement.id") == "person-before"
    viewer.press(Keys.ENTER)
    viewer.wait_for("return document.querySelector('#person-state').textContent === 'User 2 of 4'")
    viewer.tab_to("#person-shown .tokens-of-review")
    viewer.press(Keys.END)
    assert "weight 0.9" in viewer.ask("return document.querySelector('#person-shown .token-facts').textContent")

    viewer.tab_to("#results > summary")
    viewer.press(Keys.ENTER)
    viewer.tab_to("#results .sort")
    viewer.press(Keys.ENTER)
    assert viewer.ask("return document.activeElement.parentElement.getAttribute('aria-sort')") == "descending"
    names = "return [...document.querySelector('#results tbody').rows].map((row) => row.cells[0].textContent)"
    assert viewer.ask(names) == ["nextquill", "contextsft"]
    viewer.press(Keys.ENTER)
    assert viewer.ask(names) == ["contextsft", "nextquill"]

    viewer.ask("document.activeElement.blur(); location.hash = '#differences'")
    viewer.tab_to("a[download]")
    viewer.press(Keys.ENTER)
    deadline = time.monotonic() + 60
    while not list(viewer.folder.glob("saved/*.csv")):
        assert time.monotonic() < deadline, "no download"
        time.sleep(0.1)
    assert (viewer.folder / "saved" / "scores.csv").read_text() == "method,value\nnextquill,0.2318\n"
    assert viewer.driver.get_log("browser") == []


@pytest.mark.parametrize("name", ["report", "explain", "compare"])
def test_paper_has_what_is_folded_on_the_screen(viewer: Viewer, pages: dict[str, str], name: str) -> None:
    viewer.screen(1400, "dark")
    viewer.open(f"paper-{name}", pages[name])
    folded = viewer.ask("return document.querySelectorAll('details:not([open])').length")
    assert folded or name == "compare"
    as_it_is = printed_pages(viewer)
    viewer.screen(720, "dark", media="print")
    viewer.shot(f"{name}-paper")
    assert viewer.ask("return getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)", "light"
    assert viewer.ask("return document.documentElement.scrollWidth") <= 720, "paper does not scroll"
    if name == "report":
        assert viewer.ask(VISIBLE, "[0.1900, 0.2100]"), "in a folded table"
        assert not viewer.ask(VISIBLE, "Every user")
        assert viewer.ask(VISIBLE, "The list of every user is on the screen alone.")
        viewer.screen(720)
        assert not viewer.ask(VISIBLE, "[0.1900, 0.2100]")
        assert not viewer.ask(VISIBLE, "The list of every user is on the screen alone.")
    viewer.screen(1400)
    viewer.ask("for (const one of document.querySelectorAll('details')) one.open = true")
    assert printed_pages(viewer) == as_it_is


def printed_pages(viewer: Viewer) -> int:
    """Return the number of pages of the page as PDF."""
    pdf = base64.b64decode(viewer.command("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    count = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert count > 0
    return count


@pytest.mark.slow
def test_a_report_of_4000_users_is_one_small_file_that_opens_at_once(viewer: Viewer, report: Report) -> None:
    people = people_of(many_people(USERS), METHODS)
    assert people
    html = render(replace(report, person=people))
    size = len(html.encode())
    viewer.screen(1400)
    viewer.requests()
    url = viewer.open("many", html)
    viewer.wait_for("return performance.getEntriesByName('first-contentful-paint').length")
    loaded, painted = viewer.ask(
        "return [performance.getEntriesByType('navigation')[0].loadEventEnd,"
        " performance.getEntriesByName('first-contentful-paint')[0].startTime]"
    )
    print(f"{size:,} bytes, first picture after {painted:,.0f} ms, loaded after {loaded:,.0f} ms; {people.left_out}")
    assert size < LARGEST_BYTES
    assert max(loaded, painted) / 1000 < LONGEST_S
    assert viewer.requests() == {url}
    assert people.left_out
    assert viewer.ask(VISIBLE, people.left_out)
    viewer.ask("document.querySelector('#person-before').click()")  # the last user
    last = len(people.users)
    viewer.wait_for(
        "return document.querySelector('#person-state').textContent === arguments[0]", f"User {last} of {last}"
    )
    assert viewer.driver.get_log("browser") == []


def many_people(users: int) -> Iterator[ExplainedExample]:
    """Yield a review of about 120 words for each of many users, with the texts of every method."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(8000)]
    common = [1 / place for place in range(1, len(words) + 1)]

    def text() -> list[str]:
        return [f" {word}" for word in draw.choices(words, common, k=draw.randint(60, 180))]

    for number in range(users):
        pieces = text()
        tokens = [
            TargetToken(piece, draw.random(), draw.random(), draw.random(), draw.random(), False) for piece in pieces
        ]
        units = [Unit(token.text, token.effect, False, "") for token in tokens]
        review = Review(Item("title", "title"), 4.0, "title", "".join(pieces))
        past = tuple(replace(review, text="".join(text())) for _ in range(4))
        example = Example(f"C:u{number}:0", f"u{number:05}", "C", "test", review, past)
        texts = {method: "".join(text()) for method in METHODS}
        yield ExplainedExample(example, "B1", past, tuple(units), tuple(tokens), texts, {}, draw.random())
