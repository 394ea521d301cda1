"""Choice between plain prompts and a model's chat template, with the reason.

A base model's tokenizer may have a chat template whose tokens the model never learned (Qwen2.5's has), so the existence
of a template proves nothing. `auto` uses the model's names and the token at which its files say that it stops. Nothing
is loaded or downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nextquill_core.errors import ModelError
from nextquill_core.model.gguf import read_header
from nextquill_core.model.identity import COPY_MODEL, HUB_CACHE, is_gguf, is_hub_name, model_file
from storage.stored_json import expect_form

Name = Literal["plain", "chat"]

BASE_WORDS = frozenset(("base", "pt", "pretrained", "pretrain", "foundation"))
CHAT_WORDS = frozenset(("chat", "instruct", "instruction", "instructions", "rlhf", "dpo", "assistant"))
CHAT_SUFFIXES = frozenset(("it",))
"""As in gemma-2-2b-it; a folder with only this name says nothing."""
CHAT_FAMILIES = re.compile(
    r"\b(qwen-?3|qwq|zephyr|vicuna|tulu|hermes|openhermes|openchat|starling|dolphin|wizardlm|alpaca|phi-?4|smollm3|"
    r"gpt-oss|deepseek-r1|mistral-nemo|mistral-small|ministral|magistral)"
)
"""Families whose models follow instructions unless their name has one of `BASE_WORDS`."""
BASE_FAMILIES = re.compile(
    r"\b(qwen-?(1\.5|2|2\.5)|qwen|llama|tinyllama|gemma|mistral|mixtral|smollm|olmo|pythia|gpt-?2|gpt-?neo|gpt-?j|opt|"
    r"phi|falcon|bloom|mpt|yi|deepseek)(?=\b|[-_\d])"
)
"""Families whose instruct models say so in their name, so a name without such a word is a base model's."""
DOCUMENT_ENDS = frozenset(
    ("</s>", "<s>", "<eos>", "<bos>", "<pad>", "<unk>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>")
)
"""Tokens that end a document, also in base models; all other stop tokens end a turn."""
TECHNICAL = re.compile(
    r"checkpoint[-_]?\d*|global_?step[-_]?\d*|step[-_]?\d+|epoch[-_]?\d+|final|last|best|latest|snapshots?|main|model|"
    r"models|merged|adapter|weights|outputs?|export|hf|v?\d+([._]\d+)*|[0-9a-f]{7,64}|\.|\.\.|/"
)
"""Parts of a path that do not name the model; the part above them does."""


@dataclass(frozen=True)
class TemplateChoice:
    """The template of a model's prompts.

    Attributes:
        name: `plain` or `chat`.
        reason: What decided, as the rest of a sentence after "because".
    """

    name: Name
    reason: str

    def __str__(self) -> str:
        return f"template: {self.name}, because {self.reason}"


def choose_template(setting: str, model: str, revision: str = "main", *, strict: bool = False) -> TemplateChoice:
    """Decide between the plain and the chat template.

    The first of these decides: the setting; a word in the model's name; a stop token in its files that ends turns; a
    word in the names that its files mention; the naming habit of its family; for a folder whose name is not that of a
    published model, a word in the folders above it.

    Args:
        setting: `prompt.template`.
        model: A hub name, a folder, a GGUF file or `tiny`. A relative path is not resolved, so the choice does not
            depend on the working directory.
        revision: Branch, tag or commit on the hub, which selects the files in the local hub cache.
        strict: Refuse to guess for a hub model whose name says nothing and whose files are not on this machine. Once
            the model has been loaded, its files might decide otherwise.

    Raises:
        ModelError: See `strict`; or a GGUF file cannot be read.
        UserError: A file of the model has an unexpected form.
    """
    if setting != "auto":
        return TemplateChoice("chat" if setting == "chat" else "plain", f"prompt.template is {setting}")
    if model == "tiny":
        return TemplateChoice("plain", "the offline model is a base model")
    local = not is_hub_name(model)
    own = _own_name(model)
    if found := _by_word(own, f"the model is called {own}"):
        return found
    files = _files(model, revision)
    with expect_form(f"the JSON files of {model}", COPY_MODEL):
        if found := _by_stop_token(files) or _by_names(files):
            return found
    family = BASE_FAMILIES.search(own.lower())
    exact = family is not None and re.search(r"\d", own) is not None  # with a version or a size, as it was published
    if local and not exact and (found := _by_folders(model, own)):
        return found
    if family:
        return TemplateChoice("plain", f"the name {own} is a base model's, and no file of it says otherwise")
    if not local and not files:
        unknown = "its name says nothing and its files are not in the hub cache of this machine"
        if not strict:
            return TemplateChoice("plain", unknown)
        raise ModelError(
            f"cannot tell a base model from an instruct one: {unknown}", model, "set prompt.template to plain or chat"
        )
    return TemplateChoice("plain", "neither its name nor its files say that it was trained on its chat template")


def _own_name(model: str) -> str:
    """Return the last part of a path that names the model; in the hub cache, the hub name without its owner."""
    if is_gguf(model):
        model = str(Path(model).with_suffix(""))
    if cached := HUB_CACHE.search(model):
        return cached["name"]
    parts = [part for part in Path(model).parts if not TECHNICAL.fullmatch(part.lower())]
    return parts[-1] if parts else model


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _by_word(name: str, reason: str) -> TemplateChoice | None:
    words = _words(name)
    if CHAT_WORDS & set(words) or (len(words) > 1 and CHAT_SUFFIXES & set(words)):
        return TemplateChoice("chat", reason)
    if BASE_WORDS & set(words):
        return TemplateChoice("plain", reason)
    if CHAT_FAMILIES.search(name.lower().replace("_", "-")):
        return TemplateChoice("chat", f"{reason}, and base models of that family have `base` in their names")
    return None


def _by_folders(model: str, own: str) -> TemplateChoice | None:
    """Decide by the last word of the name of a folder above the model, the nearest folder first."""
    for part in reversed(Path(model).parts):
        words = _words(part)[-1:]
        if part == own or (words == ["it"]):
            continue
        for chosen, known in (("chat", CHAT_WORDS), ("plain", BASE_WORDS)):
            if known & set(words):
                return TemplateChoice("chat" if chosen == "chat" else "plain", f"it lies in a folder called {part}")
    return None


def _by_stop_token(files: dict[str, Any]) -> TemplateChoice | None:
    """Choose chat if the model stops at a token that its chat template writes and that does not end documents."""
    written = _chat_template(files)
    settings = files.get("tokenizer_config.json", {})
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    by_variable = [end] if "eos_token" in written else []
    stops = [*by_variable, *(token for token in (end, *_generation_stops(files)) if token and token in written)]
    if turn_ends := [token for token in stops if token and token not in DOCUMENT_ENDS]:
        return TemplateChoice("chat", f"it stops at {turn_ends[0]}, with which its chat template ends a turn")
    return None


def _generation_stops(files: dict[str, Any]) -> Iterator[str]:
    """Yield the texts of the tokens at which generation stops."""
    configured = files.get("generation_config.json", {}).get("eos_token_id")
    if configured is None:
        configured = files.get("config.json", {}).get("eos_token_id")
    ids = {str(token) for token in (configured if isinstance(configured, list) else [configured])}
    added = files.get("tokenizer_config.json", {}).get("added_tokens_decoder") or {}
    texts = {number: token["content"] for number, token in added.items()}
    texts |= {str(token["id"]): token["content"] for token in files.get("tokenizer.json", {}).get("added_tokens", [])}
    yield from (texts[number] for number in sorted(ids & texts.keys()))


def _chat_template(files: dict[str, Any]) -> str:
    """Return the source of all chat templates of a model."""
    inline = files.get("tokenizer_config.json", {}).get("chat_template") or ""
    if isinstance(inline, list):
        inline = "\0".join(str(named.get("template", "")) for named in inline)
    return "\0".join(
        [str(inline), files.get("chat_template.jinja", ""), json.dumps(files.get("chat_template.json", ""))]
    )


def _by_names(files: dict[str, Any]) -> TemplateChoice | None:
    """Choose chat if a name in the model's files says so; a base model's name may be that of the model it came from."""
    for place, name in _names(files):
        found = _by_word(_own_name(name), f"its {place} names {name}")
        if found and found.name == "chat":
            return found
    return None


def _names(files: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield where the files name a model, and the name."""
    yield from files.get(METADATA, {}).items()
    for file in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        for key in ("_name_or_path", "base_model_name_or_path", "name_or_path"):
            if isinstance(name := files.get(file, {}).get(key), str) and name:
                yield file, name
    card = files.get("README.md", "")
    front = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    for name in re.findall(
        r"^(?:base_model:|model_name:|-\s+name:)[ \t]*['\"]?([\w./-]+)", front[1] if front else "", re.M
    ):
        yield "README.md", name
    for listed in re.findall(r"^base_model:[ \t]*\n((?:[ \t]*-[ \t]+\S+\n?)+)", front[1] + "\n" if front else "", re.M):
        yield from (("README.md", name) for name in re.findall(r"-[ \t]+['\"]?([\w./-]+)", listed))
    if title := re.search(r"^# +(\S+)", card[front.end() if front else 0 :], re.M):
        yield "README.md", title[1]


READ = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json", "chat_template.json",
        "chat_template.jinja", "README.md", "tokenizer.json")  # fmt: skip


METADATA = "metadata"
NAMES_IN_METADATA = ("general.name", "general.basename", "general.finetune")


def _files(model: str, revision: str) -> dict[str, Any]:
    """Return the small files of a folder, or of a hub model as far as they are in the local cache, by name."""
    if is_gguf(model):
        return _inside(Path(model).expanduser())
    found: dict[str, Any] = {}
    for name in READ:
        path = model_file(model, name, revision)
        if path is None or (
            name == "tokenizer.json" and "added_tokens_decoder" in found.get("tokenizer_config.json", {})
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            value = json.loads(text) if name.endswith(".json") else text
        except (ValueError, RecursionError):
            continue  # loading the model will say so
        if not name.endswith(".json") or isinstance(value, dict):
            found[name] = value
    return found


def _inside(file: Path) -> dict[str, Any]:
    """Return what a GGUF file says in place of the small files of a folder."""
    header = read_header(file)
    return {
        "tokenizer_config.json": {
            "eos_token": header.stop_token,
            "chat_template": header.text("tokenizer.chat_template"),
        },
        METADATA: {f"metadata ({key})": header.text(key) for key in NAMES_IN_METADATA if header.text(key)},
    }
