"""The page of the server in a real browser: drafts side by side, by keyboard alone, in light and dark, without network.

With NEXTQUILL_SCREENSHOTS=DIR screenshots go there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nextquill_core.serving.app import make_app
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.settings import ServeSettings
from tests.browser import BROWSER, DRIVER, chromium
from tests.nextquill_core.analysis.test_pages_in_a_browser import Viewer
from tests.servers import listening

pytestmark = [
    pytest.mark.process,
    pytest.mark.pipeline,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
STATE = "return document.querySelector('#state').textContent"
READY = "return document.querySelectorAll('#methods input').length"
DRAFTS = "return [...document.querySelectorAll('#drafts > article')].map((one) => one.innerText)"


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with chromium(tmp_path_factory.mktemp("profile"), logs=True) as driver:
        yield Viewer(driver, tmp_path_factory.mktemp("pages"))


def opened(viewer: Viewer, address: str) -> None:
    viewer.requests()
    viewer.driver.get(f"{address}/")
    viewer.wait_for(READY)


def test_drafts_are_asked_for_by_keyboard_and_stand_side_by_side(
    viewer: Viewer, address: str, client: httpx.Client, users: list[str]
) -> None:
    from selenium.webdriver.common.keys import Keys

    viewer.screen(1400)
    opened(viewer, address)
    viewer.wait_for("return document.querySelectorAll('#users option').length")
    viewer.tab_to("#user")
    viewer.press(users[0], Keys.TAB)
    viewer.wait_for("return document.querySelectorAll('#past article').length")
    newest = client.get(f"/v1/users/{users[0]}/reviews").json()["reviews"][0]
    assert newest["text"][:40] in viewer.ask("return document.querySelector('#past').innerText")
    viewer.tab_to("#past button")
    viewer.press(Keys.ENTER)
    assert viewer.ask("return document.querySelector('#item').value") == newest["item_id"]
    viewer.wait_for("return document.querySelector('#item-state').textContent.length")
    viewer.tab_to("#title")
    viewer.press(EVIL)
    viewer.tab_to("#write")
    viewer.press(Keys.ENTER)
    viewer.wait_for(f"{STATE} === 'Done.'")
    found = viewer.ask(DRAFTS)
    assert [text.split()[0] for text in found] == ["nextquill", "latestk", "contextsft"]
    for text in found:
        assert "Likelier by the history:" in text
        assert "the user's own review of this item, and later ones, are left out" in text
    body = {"user": users[0], "item": newest["item_id"], "rating": 5, "title": EVIL, "explain": True}
    draft = client.post("/v1/drafts", json=body).json()
    tokens = "return document.querySelector('#drafts .tokens-of-review')"
    assert viewer.ask(f"{tokens}.textContent") == draft["text"]
    assert viewer.ask(f"{tokens}.children.length") == len(draft["units"])
    viewer.tab_to("#drafts .tokens-of-review")
    viewer.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    facts = viewer.ask("return document.querySelector('#drafts .token-facts').textContent")
    assert draft["units"][1]["title"].splitlines()[0] in facts
    viewer.ask("document.querySelector('#strength').focus()")
    viewer.press(*[Keys.ARROW_LEFT] * 4)
    viewer.wait_for(f"{STATE} === 'Done.'")
    assert viewer.ask("return document.querySelector('#strength-shown').textContent") == "-1, as without the history"
    steered = client.post("/v1/drafts", json={**body, "strength": -1}).json()
    viewer.wait_for(f"{tokens}?.textContent === arguments[0]", steered["text"])
    assert viewer.driver.get_log("browser") == []
    assert {url for url in viewer.requests() if not url.startswith((address, "data:"))} == set(), "no other host"


def test_the_page_is_readable_and_fits_the_screen(viewer: Viewer, address: str, users: list[str]) -> None:
    opened(viewer, address)
    viewer.ask("const user = document.querySelector('#user'); user.value = arguments[0];"
               "user.dispatchEvent(new Event('change')); document.querySelector('#item').value = 'A kettle';"
               "document.querySelector('#write').click()", users[0])  # fmt: skip
    viewer.wait_for(f"{STATE} === 'Done.'")
    viewer.read_on_every_screen("serve")
    viewer.screen(1400)


def test_texts_of_users_are_text_and_errors_are_shown(
    viewer: Viewer, address: str, rollout: Rollout, users: list[str]
) -> None:
    opened(viewer, address)
    viewer.ask(
        "document.querySelector('#user').value = arguments[0]; document.querySelector('#item').value = arguments[0];"
        "document.querySelector('#write').click()",
        EVIL,
    )
    viewer.wait_for(f"{STATE} === 'Done.'")
    assert all("the store has no reviews of this user" in text for text in viewer.ask(DRAFTS))
    assert viewer.ask("return document.querySelectorAll('img, iframe, [onerror]').length") == 0
    viewer.ask("document.querySelector('#item').value = ''; document.querySelector('#write').click()")
    viewer.wait_for(f"{STATE} === 'Choose an item, or describe one.'")
    assert viewer.driver.get_log("browser") == []
    with listening(make_app(rollout, ServeSettings(key="s3cret"))) as asking:
        viewer.driver.get(f"{asking}/")
        viewer.wait_for("return !document.querySelector('#key-part').hidden")
        viewer.ask(
            "const key = document.querySelector('#key'); key.value = 's3cret';key.dispatchEvent(new Event('change'))"
        )
        viewer.wait_for(READY)
    viewer.driver.get_log("browser")


def test_a_page_at_rest_is_one_file(address: str, tmp_path: Path) -> None:
    answer = httpx.get(f"{address}/", trust_env=False)
    assert answer.headers["content-type"].startswith("text/html")
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    assert "phrase of the true review" not in answer.text  # drafts have none to be compared with
