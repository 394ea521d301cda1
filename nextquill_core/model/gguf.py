"""What a GGUF file says of itself: its metadata and the shapes of its tensors. No weight is read.

Each command needs this for its plan. The package `gguf` would take two seconds, because it makes an array of each token
of the vocabulary, and it is not needed before a file is converted.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nextquill_core.errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Formats of the types of values that have a fixed size, for `struct`."""
STRING, ARRAY = 8, 9
COPY_AGAIN = "copy or download the file again"
USE_FOLDER = "use the model's folder with safetensors weights instead"


@dataclass(frozen=True)
class GgufHeader:
    """The beginning of a GGUF file.

    Attributes:
        metadata: Values by key, such as `general.name` and `llama.context_length`.
        tensors: Shape of each tensor by its name, the fastest-moving dimension first.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """Name of the architecture in GGUF, such as `llama`."""
        return self.text("general.architecture")

    @property
    def positions(self) -> int | None:
        """Number of positions, or None if the file does not say it."""
        found = self.metadata.get(f"{self.architecture}.context_length")
        return found if isinstance(found, int) else None

    @property
    def stop_token(self) -> str:
        """Text of the token at which the model stops, or ""."""
        tokens, number = (self.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "eos_token_id"))
        if isinstance(tokens, list) and isinstance(number, int) and 0 <= number < len(tokens):
            return str(tokens[number])
        return ""

    def text(self, key: str) -> str:
        """Return the text of a key, or "" if there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""


def read_header(path: Path) -> GgufHeader:
    """Read the beginning of a GGUF file.

    Raises:
        ModelError: The file cannot be read, is not GGUF, is cut off, or holds what no reader of GGUF 2 and 3 knows.
    """
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", str(path), "name a .gguf file") from error


@lru_cache(maxsize=4)
def _read(path: Path, _modified: int, size: int) -> GgufHeader:
    """Read a file; the last two arguments are keys of the cache."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ModelError("not a GGUF file: it does not begin with GGUF", str(path), "name a .gguf file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Cursor(data, len(MAGIC)), size)
            except (struct.error, UnicodeDecodeError, EOFError, OverflowError, MemoryError) as error:
                raise ModelError("the GGUF file is damaged or cut off", str(path), COPY_AGAIN) from error
            except NotImplementedError as error:
                raise ModelError(str(error), str(path), "use a file in GGUF 2 or 3") from error


def _parse(cursor: _Cursor, size: int) -> GgufHeader:
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        raise NotImplementedError(f"version {version} of GGUF is not supported")
    tensor_count, value_count = cursor.numbers("QQ")
    metadata = {}
    for _ in range(value_count):
        key = cursor.text()
        metadata[key] = cursor.value(*cursor.numbers("I"))
    tensors, last = {}, 0
    for _ in range(tensor_count):
        name = cursor.text()
        (dimensions,) = cursor.numbers("I")
        tensors[name] = cursor.numbers(f"{dimensions}Q")
        _, offset = cursor.numbers("IQ")
        last = max(last, offset)
    if cursor.place + last > size:
        raise EOFError
    return GgufHeader(metadata, tensors)


class _Cursor:
    """Reads values of a GGUF file one after the other."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data = data
        self.place = place

    def numbers(self, form: str) -> tuple[Any, ...]:
        form = f"<{form}"
        found = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        found = self.data[self.place : self.place + length]
        if len(found) != length:
            raise EOFError
        self.place += length
        return found.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in FIXED:
            return self.numbers(FIXED[kind])[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise NotImplementedError(f"its metadata have a value of the unknown type {kind}")
        element, count = self.numbers("IQ")
        if element in FIXED:
            return list(self.numbers(f"{count}{FIXED[element]}"))
        if element != STRING:
            raise NotImplementedError(f"its metadata have an array of the unknown type {element}")
        return [self.text() for _ in range(count)]
