"""Python literals as JSON: the older Amazon collections were written with `repr`.

They are parsed by `ast`, which builds plain values and never runs anything.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Sequence

import orjson

REFUSALS = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def as_json_lines(data: bytes, keys: Sequence[str]) -> bytes:
    """The same lines, those that hold a Python dict as a JSON object of its `keys`; all others as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" and the like are common, and mean what they say
        return b"\n".join(as_json(line, keys) for line in data.split(b"\n"))


def as_json(line: bytes, keys: Sequence[str]) -> bytes:
    """One line; what is neither a dict nor expressible in JSON stays as it is, for the JSON parser to refuse."""
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    else:
        return line
    try:
        tree = ast.parse(line.decode().strip(), mode="eval").body
        if not isinstance(tree, ast.Dict):
            return line
        names = [ast.literal_eval(key) for key in tree.keys if key is not None]
        if any(names.count(key) > 1 for key in keys):
            return line
        values = ast.literal_eval(tree)
        return json.dumps({key: values[key] for key in keys if key in values}, allow_nan=False).encode()
    except REFUSALS:
        return line
