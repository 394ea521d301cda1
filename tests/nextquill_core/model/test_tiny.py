"""The base model's training: interrupted anywhere, it resumes at its checkpoint and ends in the same bytes."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from nextquill_core.config import ModelConfig, TinyModelConfig
from nextquill_core.model import checkpoint, tiny
from nextquill_core.model.checkpoint import Checkpoint
from nextquill_core.model.loading import load_tokenizer
from nextquill_core.model.tiny import train_tiny_model
from nextquill_core.pipeline import freshness
from nextquill_core.pipeline.run import Run
from nextquill_core.progress import Progress, silent
from tests.conftest import REPO, review
from tests.stages import make
from tests.world import small_config

STEPS = 12
CONFIG = TinyModelConfig(
    vocab_size=300, hidden_size=16, layers=1, heads=2, steps=STEPS, batch_tokens=256, learning_rate=1e-2
)
PROFILES = [[review(user * 10 + place) for place in range(4)] for user in range(4)]


def train(folder: Path, progress: Progress = silent, every_s: float = 0.0) -> dict[str, str]:
    # Train in `folder` and return the digest of each file of the model, and the facts for the manifest.
    facts = train_tiny_model(
        PROFILES,
        CONFIG,
        folder / "model",
        max_history=2,
        max_tokens=128,
        seed=3,
        progress=progress,
        checkpoint=Checkpoint(folder / "state.safetensors", every_s),
    )
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "model").iterdir()}
    return files | {"facts": str(facts)}


class Interrupted:
    """Progress that interrupts training after a step, as Ctrl-C would, and remembers what it was shown."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.shown: list[tuple[float, str]] = []

    def __call__(self, done: float, total: float, note: str = "", *, phase: str = "") -> None:
        if phase:
            return
        assert total == STEPS
        self.shown.append((done, note))
        if done == self.after:
            raise KeyboardInterrupt


def test_a_stored_tokenizer_gives_the_ids_that_the_model_was_trained_on(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    train(tmp_path)
    documents = [prompt + answer for prompt, answer in tiny.pretraining_documents(PROFILES, 2, 3)]
    trained = tiny.train_tokenizer(documents, CONFIG.vocab_size)
    folder = tmp_path / "model"
    ours, theirs = load_tokenizer(ModelConfig(name_or_path=str(folder))), AutoTokenizer.from_pretrained(folder)
    for text in (*documents, "Rating: 45\n\n\tIt's 12  cafe\u0301s, 日本 ... don't\r\n"):
        assert ours(text).input_ids == theirs(text).input_ids == trained(text).input_ids


def test_the_loss_is_that_of_the_whole_batch_with_a_mask() -> None:
    torch.manual_seed(0)
    model = tiny.tiny_qwen3(CONFIG, 300, stop_id=0, pad_id=1)
    ids_BT, labels_BT = tiny._padded([[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15]])
    expected = model(input_ids=ids_BT, attention_mask=(labels_BT != tiny.IGNORED).long(), labels=labels_BT).loss
    torch.testing.assert_close(tiny._loss(model, ids_BT, labels_BT), expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return train(tmp_path_factory.mktemp("whole"), every_s=1e9)


@pytest.mark.parametrize("after", [1, 5, STEPS - 1, STEPS])
def test_an_interruption_after_any_step_changes_nothing(after: int, whole: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Interrupted(after))
    torch.manual_seed(99)  # another process has other random numbers
    resumed = Interrupted()
    assert train(tmp_path, resumed) == whole
    steps = [(done, note) for done, note in resumed.shown if done]
    assert [done for done, _ in steps] == list(range(after + 1, STEPS + 1))
    assert all(note.endswith(f"resumed at step {after}") for _, note in steps)


def test_training_that_is_interrupted_again_and_again_ends_in_the_same_bytes(
    whole: dict[str, str], tmp_path: Path
) -> None:
    for after in (2, 3, 7):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, Interrupted(after))
    assert train(tmp_path) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {repo!r})
from tests.nextquill_core.model.test_tiny import train

def die(*_): os.kill(os.getpid(), signal.SIGKILL)
place, number = sys.argv[1], int(sys.argv[2])
if place == "write":  # between the data of a checkpoint and its name
    synced, count = os.fsync, iter(range(1, 100))
    os.fsync = lambda file: die() if next(count) == number else synced(file)
train(Path({folder!r}), lambda done, total, note="", phase="": die() if place == "step" and done == number else None)
"""


@pytest.mark.process
def test_kill_9_after_a_step_and_while_a_checkpoint_is_written(whole: dict[str, str], tmp_path: Path) -> None:
    code = KILLED.format(repo=str(REPO), folder=str(tmp_path))
    for place, number in (("step", 4), ("write", 3)):  # the third write of the second run is that of step 7
        process = subprocess.run([sys.executable, "-c", code, place, str(number)], cwd=REPO, check=False)
        assert process.returncode == -signal.SIGKILL
    resumed = Interrupted()
    assert train(tmp_path, resumed) == whole
    assert next(done for done, _ in resumed.shown if done) == 7


def test_the_stage_resumes_and_its_artifact_holds_no_checkpoint(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "Checkpoint", partial(Checkpoint, every_s=0.0))
    contents = []
    for store, interrupted in (("whole", False), ("parts", True)):
        run = Run(small_config(small_world, tmp_path / store, model={"tiny": CONFIG.model_dump()}))
        assert run.plan.model
        make(run, run.plan.ingest)
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                run.make(run.plan.model, progress=Interrupted(8))
            assert freshness(run.store, run.plan.model).state not in ("fresh", "missing")
        shown = Interrupted()
        outcome = run.make(run.plan.model, progress=shown)
        assert next(done for done, _ in shown.shown if done) == (9 if interrupted else 1)
        assert {path.name for path in outcome.artifact.folder.iterdir()} <= {"model", "manifest.json", ".shards"}
        contents.append((outcome.artifact.manifest.content, outcome.artifact.manifest.stats))
    assert contents[0] == contents[1]


def test_steps_after_the_last_checkpoint_are_trained_again(whole: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Interrupted(3))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Interrupted(6), every_s=1e9)  # writes none
    resumed = Interrupted()
    assert train(tmp_path, resumed) == whole
    assert next(done for done, _ in resumed.shown if done) == 4


def test_without_a_readable_checkpoint_training_starts_at_the_first_step(whole: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not JSON")
    started = Interrupted()
    assert train(tmp_path, started, every_s=1e9) == whole
    assert started.shown[1][0] == 1
    assert "resumed" not in started.shown[1][1]
