"""Whether a model has room for its tokenizer and for the prompts, from its files alone.

A model with fewer embedding rows than the tokenizer has tokens, or fewer positions than a prompt needs, fails in the
middle of the work, and on a GPU without saying why. Both numbers are in small files, so they are compared before
anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nextquill_core.errors import ModelError
from nextquill_core.model.template_choice import model_file
from storage.files import read_json

UNLIMITED = 10**7
"""A tokenizer's `model_max_length` above this means that it names no limit."""
POSITIONS = ("max_position_embeddings", "n_positions")


def check_limits(model: str, revision: str, lengths: Mapping[str, int]) -> None:
    """Compare a model's files with each other and with the lengths that settings allow.

    Files that are not on this machine are not looked at.

    Args:
        model: A folder or a hub name.
        revision: On the hub.
        lengths: Tokens that may stand in one sequence, by the settings that add up to them.

    Raises:
        ModelError: The tokenizer has a token without an embedding row that could occur, or the model has too few
            positions.
    """
    config = _json(model_file(model, "config.json", revision))
    settings = _json(model_file(model, "tokenizer_config.json", revision))
    rows = _text_config(config).get("vocab_size")
    if isinstance(rows, int):
        _check_rows(model, revision, settings, rows)
    positions = _positions(config) or _finite(settings.get("model_max_length"))
    for names, length in lengths.items():
        if positions is not None and length > positions:
            raise ModelError(
                f"the model has {positions:,} positions, and {names} allow {length:,} tokens",
                model,
                f"lower them to {positions:,} together",
            )


def _check_rows(model: str, revision: str, settings: Mapping[str, Any], rows: int) -> None:
    path = model_file(model, "tokenizer.json", revision)
    if path is None:
        return
    written = path.stat()
    beyond = _beyond(path, rows, written.st_mtime_ns, written.st_size)
    if not beyond:
        return
    named = {*_named(settings), *_named(_json(model_file(model, "special_tokens_map.json", revision)))}
    template = str(settings.get("chat_template") or "")
    if jinja := model_file(model, "chat_template.jinja", revision):
        template += jinja.read_text(encoding="utf-8", errors="replace")
    # A special token that nothing writes cannot occur (Gemma 3's text models have one for images beyond their rows).
    if all(special and text not in named and text not in template for _, text, special in beyond):
        return
    tokens = max(number for number, _, _ in beyond) + 1
    raise ModelError(
        f"the tokenizer has {tokens:,} tokens, and the model's embedding has {rows:,} rows",
        model,
        f"use the tokenizer that the model was trained with, or call model.resize_token_embeddings({tokens}) and save "
        "the model again",
    )


@lru_cache(maxsize=4)
def _beyond(path: Path, rows: int, _modified: int, _size: int) -> tuple[tuple[int, str, bool], ...]:
    """(id, text, whether special) of each token without a row; the last two arguments tell versions of a file apart."""
    description = _json(path)
    vocabulary = description.get("model", {}).get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
    added = {token["id"]: token for token in description.get("added_tokens", [])}
    found = {number: (text, False) for text, number in vocabulary.items() if number >= rows}
    found |= {number: (token["content"], bool(token["special"])) for number, token in added.items() if number >= rows}
    return tuple((number, *found[number]) for number in sorted(found))


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that settings give a part to, such as `pad_token`."""
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            yield text


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, in the files of models that read images too."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _positions(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has, its scaling of rotary positions counted; None where it names no limit."""
    text = _text_config(config)
    learned = next((text[key] for key in POSITIONS if isinstance(text.get(key), int)), None)
    if learned is None:
        return None
    most = float(learned)
    for scaling in _scalings(text.get("rope_scaling") or text.get("rope_parameters")):
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if kind not in (None, "default") and isinstance(factor, int | float):
            original = scaling.get("original_max_position_embeddings") or learned
            most = max(most, factor * original)
    return int(most)


def _scalings(value: Any) -> Iterator[Mapping[str, Any]]:
    """One description of a scaling, or one for each kind of layer."""
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _scalings(part)


def _finite(length: Any) -> int | None:
    return int(length) if isinstance(length, int | float) and 0 < length < UNLIMITED else None


def _json(path: Path | None) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none, which loading the model will say."""
    try:
        value = read_json(path) if path else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
