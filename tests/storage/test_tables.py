"""Tables are verified page by page when they are read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from storage.errors import Damaged
from storage.tables import read_batches, read_table, write_table

TABLE = pa.table({"x": list(range(2000)), "y": [f"text {number}" for number in range(2000)]})


def test_a_table_comes_back_whole_and_in_batches(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", TABLE)
    assert read_table(tmp_path / "t.parquet") == TABLE
    assert read_table(tmp_path / "t.parquet", ["y"]) == TABLE.select(["y"])
    batches = list(read_batches(tmp_path / "t.parquet", 300, ["x"]))
    assert [batch.num_rows for batch in batches] == [300] * 6 + [200]
    assert pa.Table.from_batches(batches) == TABLE.select(["x"])


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_a_flipped_bit_in_a_page_is_noticed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, TABLE)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 4
    path.write_bytes(data)
    with pytest.raises(Damaged, match="is damaged"):
        read_table(path)
    with pytest.raises(Damaged, match="is damaged"):
        list(read_batches(path, 300, ["x", "y"]))


def test_an_absent_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "t.parquet")


def test_users_open_tables_with_datasets(tmp_path: Path) -> None:
    import datasets

    for part in range(2):
        write_table(tmp_path / f"{part}.parquet", TABLE)
    files = str(tmp_path / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert (loaded.num_rows, loaded.column_names) == (4000, ["x", "y"])
    assert loaded[2001] == {"x": 1, "y": "text 1"}
