"""The beginning of a GGUF file: what the package `gguf` wrote is read, and damaged files are one line."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nextquill_core.errors import ModelError
from nextquill_core.model.gguf import read_header
from tests.conftest import REPO
from tests.gguf_files import vocabulary, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "some.gguf"
    write_gguf(path, quantized=True)
    return path


def test_metadata_and_shapes_are_those_that_the_package_reads(file: Path) -> None:
    from gguf import GGUFReader

    header, reader = read_header(file), GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.metadata) == fields
    assert {name: list(shape) for name, shape in header.tensors.items()} == {
        tensor.name: tensor.shape.tolist() for tensor in reader.tensors
    }
    assert (header.architecture, header.positions, header.stop_token) == ("llama", 2048, "<|im_end|>")
    assert header.metadata["tokenizer.ggml.tokens"] == vocabulary()[0]


@pytest.mark.process
def test_it_needs_neither_torch_nor_the_package(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nextquill_core.model.gguf import read_header\n"
        f"read_header(Path({str(file)!r})); print([x for x in ('torch', 'gguf', 'numpy') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout == "[]\n"


def test_a_file_cut_at_any_place_of_its_beginning_is_said_to_be_damaged(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    beginning = whole.index(b"blk.1.")  # within the list of tensors
    for number, length in enumerate([5, 20, 30, 200, 1000, beginning // 2, beginning, beginning + 40]):
        cut = tmp_path / f"{number}.gguf"
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"damaged or cut off; copy or download the file again"):
            read_header(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 something else", "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 of GGUF is not supported"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77), "type 77"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60) + b"k", "damaged or cut off"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 61),
            "damaged or cut off",
        ),
    ],
)
def test_what_is_no_gguf_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_header(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
