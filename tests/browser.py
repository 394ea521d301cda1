"""A real, headless browser, and a driver of Prefect's UI; elements are found by their visible text."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
PATIENCE_S, REST_S = 60.0, 8.0
AGAIN_S = 6.0
WIDTH, HEIGHT, COLOURS = 1400, 1000, 128

# Returns the innermost visible element with exactly this text that can be clicked.
CLICKABLE = """
const [text, within] = arguments;
const kinds = 'button, a, summary, label, [role=button], [role=tab], [role=option], [role=menuitem]';
const said = (one) => (one.innerText || '').replace(/\\s+/g, ' ').trim();
const seen = (one) => one.getClientRects().length > 0;
const roots = within ? [...document.querySelectorAll(within)] : [document];
const found = roots.flatMap((root) => [...root.querySelectorAll(kinds)])
  .filter((one) => seen(one) && said(one) === text);
return found.filter((one) => !found.some((other) => other !== one && one.contains(other)))[0] || null;
"""
SAYING = """
const [selector, text] = arguments;
return [...document.querySelectorAll(selector)].find((one) => (one.innerText || '').includes(text)) || null;
"""
IN_FIELD = "return arguments[0].querySelector(arguments[1])"
RESTING = """
const loads = document.querySelector('.animate-spin, .animate-pulse, [data-slot=skeleton]');
return loads ? null : document.body.innerText;
"""
OPTIONS_LIST = "[role=listbox]"
# Returns a field of a form by the labels of its sections. Prefect appends `(Optional)` to fields with a default.
FIELD = """
const said = (label) => label.innerText.replace('(Optional)', '').trim().toLowerCase();
const box = (label) => label.closest('div.grid').parentElement;
let root = document.querySelector('form');
for (const wanted of arguments[0]) {
  if (!root) return null;
  const found = [...root.querySelectorAll('label[data-slot=label]')]
    .filter((label) => said(label) === wanted.toLowerCase() && label.closest('div.grid')).map(box)
    .filter((one) => one !== root);
  // The nearest: a section further in may have fields of the same name.
  const depth = (one) => { let n = 0; for (let up = one; up && up !== root; up = up.parentElement) n++; return n; };
  root = found.sort((a, b) => depth(a) - depth(b))[0];
}
return root || null;
"""


@dataclass
class Page:
    """A window of the browser.

    Attributes:
        driver: Selenium's driver.
        url: URL of the server.
        pictures: Folder for screenshots.
    """

    driver: Chrome
    url: str
    pictures: Path

    def open(self, path: str) -> None:
        """Open a page of the server."""
        self.driver.get(f"{self.url}{path}")

    def text(self, within: str = "body") -> str:
        """Return the visible text of the elements that match a CSS selector."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText).join('\\n')"
        return str(self.driver.execute_script(script, within))

    def wait_for(self, *texts: str, within: str = "body", seconds: float = PATIENCE_S) -> str:
        """Wait until all texts are visible, and return the whole text.

        Args:
            texts: Texts to wait for.
            within: CSS selector of the elements to search.
            seconds: Seconds to wait.
        """
        return str(self._until(lambda: self._says(texts, within), f"{texts} in {within}", seconds))

    def click(self, text: str, within: str | None = None, seconds: float = PATIENCE_S) -> None:
        """Click the element with exactly this text as soon as it is visible and not covered.

        Args:
            text: The text.
            within: CSS selector of the elements to search.
            seconds: Seconds to wait.
        """
        self._until(lambda: self._clicked(CLICKABLE, text, within), f"{text!r} to click", seconds)

    def click_in(self, selector: str, text: str) -> None:
        """Click the first element that matches a CSS selector and contains a text."""
        self._until(lambda: self._clicked(SAYING, selector, text), f"{text!r} in {selector} to click")

    def rows(self, within: str) -> dict[str, list[str]]:
        """Return the rows of the tables in an element: further cells by the first cell.

        It waits for them, because the UI draws an artifact, takes it away for a moment and draws it again.
        """
        script = (
            "return [...document.querySelectorAll(arguments[0] + ' tr')]"
            ".map((row) => [...row.children].map((cell) => cell.innerText.trim()))"
        )
        rows = self._until(lambda: self.driver.execute_script(script, within), f"a table in {within}")
        return {name: cells for name, *cells in rows}

    def insist(self, act: Callable[[], None], done: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Repeat an action until it has an effect; a server whose database is busy refuses, and pages do not retry.

        Args:
            act: The action.
            done: Whether the action has had its effect.
            seconds: Seconds after which the test fails.
        """
        deadline = time.monotonic() + seconds
        while True:
            act()
            again = time.monotonic() + AGAIN_S
            while time.monotonic() < again:
                if done():
                    return
                time.sleep(0.2)
            assert time.monotonic() < deadline, f"no effect in {seconds:g} s\n{self.text()[-500:]}"

    def field(self, *labels: str) -> WebElement:
        """Return a field of the form by the labels of its sections and its own label."""
        found: WebElement = self._until(lambda: self.driver.execute_script(FIELD, labels), f"the field {labels}")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", found)
        return found

    def fill(self, *labels: str, value: str) -> None:
        """Replace the value of a field."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        entry = self.field(*labels).find_element(By.CSS_SELECTOR, "input, textarea")
        entry.send_keys(Keys.CONTROL + "a")
        entry.send_keys(value)
        assert entry.get_attribute("value") == value

    def choose(self, *labels: str, options: Sequence[str]) -> None:
        """Choose exactly these options in a drop-down for several options, and leave it open."""
        field = self.field(*labels)
        self._until(lambda: self._clicked(IN_FIELD, field, "button[aria-haspopup=listbox]"), f"the drop-down {labels}")
        there = self.wait_for(*options, within=OPTIONS_LIST).split("\n")
        for text in filter(None, map(str.strip, there)):
            if (text in options) != (text in self._chosen(field)):
                self.click(text, within=OPTIONS_LIST)
        self._until(lambda: self._chosen(field) == set(options), f"{options} chosen")

    def close(self) -> None:
        """Close an open drop-down or menu."""
        from selenium.webdriver.common.keys import Keys

        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
        self._until(lambda: not self.text(OPTIONS_LIST), "the drop-down's end")

    def shot(self, name: str, top: str | None = None) -> Path:
        """Save a screenshot as soon as the page has stopped loading; pages that count seconds never stop.

        Args:
            name: Name of the file without its suffix.
            top: CSS selector of the element to scroll to.
        """
        if top:
            self.driver.execute_script("document.querySelector(arguments[0]).scrollIntoView()", top)
        deadline = time.monotonic() + REST_S
        before = None
        while (now := self.driver.execute_script(RESTING)) != before or now is None:
            if time.monotonic() > deadline:
                break
            before = now
            time.sleep(1.0)
        path = self.pictures / f"{name}.png"
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as picture:
            picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)  # a third of the bytes
        return path

    def _chosen(self, field: WebElement) -> set[str]:
        script = "return [...arguments[0].querySelectorAll('[data-slot=badge]')].map((one) => one.innerText.trim())"
        return set(self.driver.execute_script(script, field))

    def _says(self, texts: Sequence[str], within: str) -> str | None:
        found = self.text(within)
        return found if all(text in found for text in texts) else None

    def _clicked(self, script: str, *arguments: Any) -> bool:
        from selenium.common.exceptions import WebDriverException

        found = self.driver.execute_script(script, *arguments)
        if found is None:
            return False
        try:
            found.click()
        except WebDriverException:  # it was drawn again, or is still covered
            return False
        return True

    def _until(self, holds: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := holds():
                    return found
            except StaleElementReferenceException:
                pass
            if time.monotonic() > deadline:
                self.driver.save_screenshot(str(self.pictures / "failed.png"))
                raise AssertionError(f"not there after {seconds:g} s: {what}\n{self.text()[-500:]}")
            time.sleep(0.2)


@contextmanager
def browser(url: str, pictures: Path, profile: Path) -> Iterator[Page]:
    """Start a browser for the pages of a server for the duration of a block.

    Args:
        url: URL of the server.
        pictures: Folder for screenshots.
        profile: Folder for the browser's profile.
    """
    with chromium(profile) as driver:
        frame = driver.execute_script("return window.outerHeight - window.innerHeight")
        driver.set_window_size(WIDTH, HEIGHT + frame)
        yield Page(driver, url, pictures)


@contextmanager
def chromium(profile: Path, *, logs: bool = False) -> Iterator[Chrome]:
    """Start a headless Chromium with an empty profile for the duration of a block.

    Args:
        profile: Folder for the browser's profile.
        logs: Whether it keeps what pages write to the console (log `browser`) and request (log `performance`).
    """
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    assert BROWSER
    assert DRIVER
    options = ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    if logs:
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(PATIENCE_S)
    try:
        yield driver
    finally:
        driver.quit()
