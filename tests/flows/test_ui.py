"""A walk through Prefect's UI in a real browser: the steps of docs/how-to/ui.md, done by clicks and keys.

With NEXTQUILL_SCREENSHOTS=DIR its pictures go there; those in docs/images were made so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tasks.ranks.placement import free_port
from tests.browser import BROWSER, DRIVER, Page, browser
from tests.conftest import REPO
from tests.flows.server.test_local import marked, nextquill, plain_environment
from tests.prefect_server import Server
from tests.tasks.processes import workers_of
from tests.waiting import wait_for
from tests.world import small_settings

pytestmark = [
    pytest.mark.flow,
    pytest.mark.ranks,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]

DEPLOYMENTS = ("pipeline", "ingest", "model", "score", "train", "evaluate", "sweep", "reproduce", "promote")
METHODS = ("qwen", "latestk", "nextquill")
UNDER_WAY = ("SCHEDULED", "PENDING", "RUNNING")
PROMISED_S = 30.0
MADE_S = 300.0
HEADING = ":has(> nav[aria-label=breadcrumb])"
DIALOG = "[role=alertdialog]"
TABS, CARDS, ARTIFACT = "[role=tablist]", "[data-testid=flow-run-artifacts-grid] a", "[data-testid=markdown-display]"


@dataclass
class Walk:
    """A server that `up` has started in a separate folder, and a browser that looks at it."""

    page: Page
    server: Server
    project: Path
    home: Path

    def open_form(self, deployment: str) -> None:
        """Deployments → its name → Run → Custom run."""
        self.page.click("Deployments")
        self.page.click(deployment, within="table")
        self.page.click("Run")
        self.page.click("Custom run")
        self.page.wait_for("Parameters", within="form")

    def submit(self) -> str:
        """The form's button, then the link to the flow run that the page shows; returns the run's id."""
        self.page.insist(lambda: self.page.click("Submit", within="form"), lambda: "View run" in self.page.text())
        self.page.click("View run")
        self.page.wait_for("Logs", within=TABS)
        return self.page.driver.current_url.split("?")[0].rsplit("/", 1)[-1]

    def open_run(self, run: str) -> None:
        """The page of a flow run."""
        self.page.open(f"/v2/runs/flow-run/{run}")

    def stages_of(self, run: str) -> dict[str, str]:
        """The flow runs inside the pipeline's, by stage, as far as there are any."""
        inside = self.server.runs(flow_runs={"parent_flow_run_id": {"any_": [run]}})
        return {one["flow"]: one["id"] for one in inside}

    def see_end_of(self, run: str) -> None:
        """Wait elsewhere, since the page of a run draws all the time, and open it once the run has ended."""
        self.page.open("/v2/deployments")
        wait_for("the run", lambda: self.server.flow_run(run)["state_type"] not in UNDER_WAY, MADE_S)
        self.open_run(run)
        self.page.wait_for("Completed", within=HEADING)

    def open_artifact(self, run: str, key: str) -> None:
        """The tab Artifacts of a flow run, one of them, and its newest; looked at again until it is there."""

        def look() -> None:
            self.open_run(run)
            self.page.click("Artifacts", within=TABS)

        self.page.insist(look, lambda: key in self.page.text(CARDS), MADE_S)
        self.page.click_in(CARDS, key)
        self.page.click_in("a[href*='/artifacts/artifact/']", "")


def small_project(folder: Path) -> Path:
    """The repository's prefect.yaml with parameters that take a minute, beside its flows and a synthetic category."""
    project = yaml.safe_load((REPO / "prefect.yaml").read_text())
    config = small_settings(Path("data/demo"), Path("artifacts"))
    config["evaluate"] |= {"methods": list(METHODS), "max_new_tokens": 16, "paper_max_new_tokens": 16}
    for deployment in project["deployments"]:
        parameters = deployment["parameters"]
        parameters |= {"configs": [config]} if "configs" in parameters else {"config": config}
    (folder / "prefect.yaml").write_text(yaml.safe_dump(project, sort_keys=False))
    (folder / "flows").symlink_to(REPO / "flows")
    done = nextquill("sample", "data/demo", "--users", "20", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = os.environ.get("NEXTQUILL_SCREENSHOTS")
    folder = Path(asked) if asked else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Walk]:
    project = small_project(tmp_path_factory.mktemp("walk"))
    home, port = project / "home", free_port()
    try:
        done = nextquill("up", "--port", str(port), "--home", str(home), cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        url = f"http://127.0.0.1:{port}"
        server = Server(f"{url}/api", plain_environment() | {"PREFECT_API_URL": f"{url}/api"})
        with browser(url, pictures, tmp_path_factory.mktemp("profile")) as page:
            yield Walk(page, server, project, home)
    finally:
        done = nextquill("down", "--home", str(home), cwd=project)
    assert done.returncode == 0, done.stderr
    assert marked(home) == []


def test_a_walk(walk: Walk) -> None:
    page, store = walk.page, walk.project / "artifacts"

    page.open("/")
    page.click("Deployments")
    page.wait_for("9 Deployments", *DEPLOYMENTS)
    page.shot("ui-deployments")

    # The pipeline from its form, with one preset of the two.
    walk.open_form("pipeline")
    page.shot("ui-form")
    page.choose("config", "Evaluate", "Decoding", options=["paper"])
    page.close()
    run = walk.submit()
    assert walk.server.flow_run(run)["parameters"]["config"]["evaluate"]["decoding"] == ["paper"]
    page.wait_for("Running", within=HEADING)
    train = wait_for("the training", lambda: walk.stages_of(run).get("train"), MADE_S)
    walk.open_artifact(train, "progress-train-nextquill")
    assert re.search(r"Progress: [\d.]+%", page.wait_for("Progress: ", "%"))
    walk.open_run(run)
    page.shot("ui-progress")
    walk.see_end_of(run)
    page.click("Subflow Runs", within=TABS)
    page.wait_for("5 Subflow runs")

    walk.open_artifact(run, "pipeline-small")
    said = page.wait_for("Stages", "Evaluation", within=ARTIFACT)
    assert "Small, paper decoding, n = " in said
    assert "sane decoding" not in said
    assert [name for name in page.rows(ARTIFACT) if name in METHODS] == list(METHODS)
    page.shot("ui-report")
    page.click_in(f"{ARTIFACT} a", "training")
    page.click_in("a[href*='/artifacts/artifact/']", "")
    page.wait_for("loss on val", within=ARTIFACT)
    assert list(page.rows(ARTIFACT)) == ["adapter", "nextquill"]
    drawn = "const one = document.querySelector(arguments[0]); return one && one.naturalWidth"
    wait_for("the curves", lambda: page.driver.execute_script(drawn, f"{ARTIFACT} img"))
    page.shot("ui-training")
    walk.open_artifact(run, "pipeline-small")
    page.click_in(f"{ARTIFACT} a", "evaluate")
    page.wait_for("evaluate Small", "stage:evaluate", "made", within=HEADING)

    # Evaluate alone, with the other decoding preset.
    walk.open_form("evaluate")
    page.choose("config", "Evaluate", "Decoding", options=["sane"])
    page.shot("ui-preset")
    page.close()
    run = walk.submit()
    walk.see_end_of(run)
    walk.open_artifact(run, "why-evaluate-small")
    page.wait_for("made or reused", within=ARTIFACT)
    rows = page.rows(ARTIFACT)
    assert all(rows[name][1] == "reused" for name in ("scan:Small", "ingest", "model", "score", "train"))
    assert rows["evaluate"] == ["stale", "made again", 'evaluate.decoding ["paper"] → ["sane"]']
    page.shot("ui-why-reused", top=ARTIFACT)

    # Train alone, with another α.
    walk.open_form("train")
    page.fill("config", "Train", "Alpha", value="0.1")
    run = walk.submit()
    walk.see_end_of(run)
    walk.open_artifact(run, "why-train-small")
    page.wait_for("made or reused", within=ARTIFACT)
    rows = page.rows(ARTIFACT)
    assert rows["train"] == ["stale", "made again", "train.alpha 0.05 → 0.1"]
    assert rows["score"][1] == "reused", "it does not ask for α"
    page.shot("ui-why-stale")

    # The list of runs: names say what was different.
    page.open("/v2/runs")
    page.wait_for("train nextquill Small α=0.1", "evaluate Small decoding=sane", "pipeline Small decoding=paper")
    page.shot("ui-runs")

    # A training that would take hours, cancelled.
    walk.open_form("train")
    page.fill("config", "Train", "Epochs", value="2000")
    walk.submit()
    page.wait_for("Running", within=HEADING, seconds=MADE_S)
    wait_for("the ranks", lambda: workers_of(store), MADE_S)
    page.click("Open menu")
    page.click("Cancel", within="[role=menu]")
    page.wait_for("Are you sure", within=DIALOG)
    page.shot("ui-cancel")
    page.insist(lambda: page.click("Cancel Flow Run", within=DIALOG), lambda: not page.text(DIALOG))
    wait_for("ending the ranks", lambda: not workers_of(store), PROMISED_S)
    page.wait_for("Cancelled", within=HEADING)
