"""JSON lines, Python literals and JSON arrays whose columns the configuration names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nextquill_core.errors import DataError
from nextquill_core.ingest.formats.arrays import elements
from nextquill_core.ingest.formats.blocks import beginning, read_blocks
from nextquill_core.ingest.formats.fields import mapped_fields
from nextquill_core.ingest.formats.objects import NotARowError, object_keys
from nextquill_core.ingest.formats.parse import Parser, read_array, read_lines
from nextquill_core.ingest.formats.values import Rules, check_times
from nextquill_core.ingest.sources.base import Batch, Part
from nextquill_core.ingest.sources.options import nearest

HEAD_BYTES = 1 << 20
HEAD_LINES = 1000
SEARCHED_BYTES = 8 << 20


def read_json(
    path: Path,
    keys: Mapping[str, str],
    rules: Rules,
    part: Part,
    batch_bytes: int,
    resume: Any = None,
    *,
    encoding: str = "utf-8",
    siblings: Sequence[Path] = (),
) -> Iterator[Batch]:
    """Read objects, one a line or the elements of one array; each value is converted by its own type.

    Args:
        path: The file, plain or gzip.
        keys: Raw key by canonical column.
        rules: How single values become canonical.
        part: Reviews or items.
        batch_bytes: About how much text a batch holds.
        resume: As in `Source.read`; an array is always read from its beginning.
        encoding: As in `read_blocks`. An array has to be UTF-8.
        siblings: All files of the part; a key that only some of them have is a missing value in the others.

    Raises:
        DataError: The file cannot be read, or no object has one of the keys.
    """
    check_times(rules.times)
    parser = Parser(mapped_fields(keys, rules, part), part, literals=True)
    if resume is None:
        check_keys(path, keys, part, encoding, siblings)
    if resume is None and beginning(path, HEAD_BYTES, encoding=encoding).startswith(b"["):
        yield from read_array(path, parser, batch_bytes)
    else:
        yield from read_lines(path, parser, batch_bytes, resume, encoding=encoding)


def check_keys(path: Path, keys: Mapping[str, str], part: Part, encoding: str, siblings: Sequence[Path]) -> None:
    """Check that every mapped key occurs somewhere; a name that is misspelt never does.

    Raises:
        DataError: One does not; the nearest key is suggested.
    """
    seen = _keys_at_the_beginning(path, encoding)
    absent = {key: name for name, key in keys.items() if key not in seen}
    if not seen or not absent:
        return
    for file in dict.fromkeys((path, *siblings)):
        if not absent:
            return
        found = _occurring(file, list(absent), encoding)
        absent = {key: name for key, name in absent.items() if key not in found}
    for key in absent:
        raise DataError(f"no object has the key `{key}`", str(path), nearest(key, list(seen)))


def _keys_at_the_beginning(path: Path, encoding: str) -> dict[str, None]:
    head = beginning(path, HEAD_BYTES, encoding=encoding)
    lines: list[bytes] = []
    if head.startswith(b"["):
        for element, _, _ in elements(path):
            lines.append(element)
            if len(lines) == HEAD_LINES:
                break
    else:
        lines = head.split(b"\n")[:HEAD_LINES]
    seen: dict[str, None] = {}
    for line in lines:
        try:
            seen |= dict.fromkeys(object_keys(line, literals=True))
        except NotARowError:
            continue
    return seen


def _occurring(path: Path, keys: Sequence[str], encoding: str) -> set[str]:
    """Which keys stand in quotes anywhere in a file; searching it takes a fraction of the time of parsing it."""
    wanted = {
        key: re.compile("|".join(rf"""["']{re.escape(form)}["']""" for form in {key, json.dumps(key)[1:-1]}).encode())
        for key in keys
    }
    found: set[str] = set()
    for block in read_blocks(path, block_bytes=SEARCHED_BYTES, encoding=encoding):
        found |= {key for key in wanted.keys() - found if wanted[key].search(block.data)}
        if len(found) == len(wanted):
            break
    return found
