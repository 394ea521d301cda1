"""Ids are replaced and users left out before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from nextquill_core.config import PrivacyConfig
from nextquill_core.errors import DataError
from nextquill_core.ingest.privacy import WITHHELD, Privacy, privacy
from nextquill_core.ingest.sources import BadRow, Batch
from tests.nextquill_core.ingest.world import World, plain_category, without_examples

KEY = "correct horse battery staple"


def keyed(monkeypatch: pytest.MonkeyPatch, key: str = KEY, **settings: object) -> Privacy:
    monkeypatch.setenv("NEXTQUILL_PSEUDONYM_KEY", key)
    return privacy(PrivacyConfig.model_validate(settings))


def everything(folder: Path) -> str:
    """All bytes below a folder, and what they say once they are decompressed."""
    texts = []
    for path in folder.rglob("*"):
        if path.is_file():
            texts.append(path.read_bytes().decode(errors="replace"))
        if path.suffix == ".parquet":
            texts.append(str(pl.read_parquet(path).to_dicts()))
    return "\n".join(texts)


def test_pseudonyms_are_the_same_for_one_key_and_others_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = keyed(monkeypatch, pseudonymize=True)
    assert mine.pseudonym("u1") == keyed(monkeypatch, pseudonymize=True).pseudonym("u1")
    other = keyed(monkeypatch, "another key, as long", pseudonymize=True)
    assert len({mine.pseudonym("u1"), mine.pseudonym("u2"), other.pseudonym("u1")}) == 3
    assert len(mine.pseudonym("u1")) == 32
    assert mine.identity != other.identity
    for shown in (repr(mine), str(mine.identity)):
        assert KEY not in shown
        assert str(mine.key) not in shown


def test_a_missing_or_short_key_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="shorter than 16 bytes") as caught:
        keyed(monkeypatch, "short", pseudonymize=True)
    assert "short\n" not in str(caught.value)
    monkeypatch.delenv("NEXTQUILL_PSEUDONYM_KEY")
    with pytest.raises(DataError, match="NEXTQUILL_PSEUDONYM_KEY: no key for pseudonyms"):
        privacy(PrivacyConfig(pseudonymize=True))
    assert privacy(PrivacyConfig(pseudonymize=True), KEY).pseudonym("u1") != "u1"
    assert not privacy(PrivacyConfig()).active


def test_the_list_is_read_line_by_line_and_may_not_be_missing(tmp_path: Path) -> None:
    (tmp_path / "forget.txt").write_bytes("\ufeffu1\r\n\r\n u2 \n".encode())
    assert privacy(PrivacyConfig(forget=str(tmp_path / "forget.txt"))).forget == {"u1", "u2"}
    with pytest.raises(DataError, match=r"privacy\.forget names a text file"):
        privacy(PrivacyConfig(forget=str(tmp_path / "nothing.txt")))


def test_no_byte_holds_an_id_under_pseudonyms_and_sequences_stay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews, items = plain_category()
    reviews = [row | {"user_id": f"USER{row['user_id']}"} for row in reviews]
    world = World(tmp_path)
    rows = [*reviews, b'{"user_id": "USERu0", "text": "half', reviews[3], reviews[4] | {"timestamp": -1}]
    config = world.config(world.write("r.jsonl", rows), world.write("i.jsonl", items), suspect_rows="list")
    plain = world.run(config, out=tmp_path / "plain")
    mine = keyed(monkeypatch, pseudonymize=True)
    hidden = world.run(config, out=tmp_path / "hidden", privacy=mine)
    assert without_examples(hidden) == without_examples(plain)
    assert "half" in json.dumps(plain)
    assert "half" not in json.dumps(hidden)
    assert "USERu" in everything(tmp_path / "plain")
    shown = everything(tmp_path / "hidden")
    assert "USERu" not in shown
    assert KEY not in shown
    by_user = {row["user_id"]: row["reviews"] for row in world.table("sequences", tmp_path / "plain")}
    assert {mine.pseudonym(user): seq for user, seq in by_user.items()} == {
        row["user_id"]: row["reviews"] for row in world.table("sequences", tmp_path / "hidden")
    }
    raws = {row["reason"]: row["raw"] for row in world.table("quarantine", tmp_path / "hidden")}
    assert raws["not-json"] == raws["negative-timestamp"] == WITHHELD


@pytest.mark.parametrize("form", ["raw", "hashed", "raw, pseudonyms in use", "hashed, pseudonyms in use"])
def test_a_forgotten_user_is_in_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    reviews, items = plain_category()
    world = World(tmp_path)
    cut = b'{"user_id": "u1", "text": "text 1 of 3 and mo'
    config = world.config(world.write("r.jsonl", [*reviews, cut]), world.write("i.jsonl", items))
    listed = keyed(monkeypatch).pseudonym("u1") if "hashed" in form else "u1"
    (tmp_path / "forget.txt").write_text(listed + "\n")
    mine = keyed(monkeypatch, pseudonymize="use" in form, forget=str(tmp_path / "forget.txt"))
    stats = world.run(config, out=tmp_path / "out", privacy=mine)
    assert stats["users"] == 3
    assert stats["reviews"]["dropped"] == {"forgotten_user": 6, "not-json": 1}
    shown = everything(tmp_path / "out")
    assert "text 2 of 3" in shown
    for secret in ("text 1 of", "'u1'", '"u1"', mine.pseudonym("u1")):
        assert secret not in shown


def test_messages_about_a_bad_row_hold_none_of_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BadRow(1, "wrong-type-user_id", "USERu", "user_id is USERu", 'set rating_words: {"USERu": NUMBER}')
    batch = Batch(pl.DataFrame(), [row])
    hidden, _ = keyed(monkeypatch, pseudonymize=True).apply(batch)
    assert hidden.bad == [BadRow(1, "wrong-type-user_id", WITHHELD)]
