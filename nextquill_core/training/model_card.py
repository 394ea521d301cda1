"""The model card of an adapter: a README.md in the format of the Hugging Face hub, with YAML before the Markdown.

It has no times, paths or host names, so the same facts give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nextquill_core.prompts import WORDINGS, build_prompt
from nextquill_core.records import Item, Review, TextKind

PAPER = "https://arxiv.org/abs/2506.02368"
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # valid values of vLLM's --max-lora-rank
SHOWN_ITEM = Item("The Quiet River", "A novel about three sisters and a ferry.")
SHOWN_HISTORY = Review(Item("Salt Roads", "Essays on walking."), 4.0, "Warm and unhurried", "I read it twice, slowly.")

Rows = Sequence[tuple[str, str]]
"""Rows of a table: (name, value) pairs."""


@dataclass(frozen=True)
class Card:
    """Content of a model card.

    Attributes:
        method: Name of the method.
        summary: Description of the method.
        base: Name of the base model for readers.
        base_id: Name of the base model on the hub, or None if it has none.
        revision: Revision of the base model on the hub.
        base_files: File names and SHA-256 digests of a base model that is not on the hub.
        rank: LoRA's r.
        history: Whether prompts show the user's history.
        template: `plain` or `chat`.
        writes: Kind of text that prompts ask for.
        fingerprint: Fingerprint of the adapter's artifact.
        data: Facts about the training data.
        settings: Settings that decided the training.
        training: Metrics of the last step.
        validation: Metrics of the stored adapter on the val split, if there are any.
        merged: Whether the folder holds the whole model with the adapter merged into it.
    """

    method: str
    summary: str
    base: str
    base_id: str | None
    revision: str
    rank: int
    history: bool
    template: str
    fingerprint: str
    data: Rows
    settings: Rows
    training: Rows
    validation: Rows = ()
    base_files: Rows = ()
    merged: bool = False
    writes: TextKind = "review"

    def render(self) -> str:
        """Return the text of the file, which ends with one line break."""
        sections = [
            "\n".join(["---", *self._front(), "---"]),
            f"# {self.method} on {self.base}",
            self._opening(),
            f"## Use\n\n{self._use()}",
            *([f"## Base model\n\n{self._needed()}"] if self.base_files and not self.merged else []),
            f"## Prompt\n\n{self._prompt()}",
            f"## Data\n\n{_table(self.data)}",
            f"## Settings\n\n{_table(self.settings)}",
            f"## Last training step\n\n{_table(self.training)}",
            *([f"## Validation\n\n{_table(self.validation)}"] if self.validation else []),
            f"## What it is not\n\n{self._limits()}",
            "## Reference\n\n*NextQuill: Causal Preference Modeling for Enhancing LLM Personalization*, "
            f"[arXiv 2506.02368]({PAPER}).",
        ]
        return "\n\n".join(sections) + "\n"

    def _front(self) -> Iterator[str]:
        """Yield the lines of YAML with each value as JSON, a subset of YAML. The user adds the licence."""
        if self.base_id:
            yield f"base_model: {_quoted(self.base_id)}"
            yield f"base_model_relation: {'finetune' if self.merged else 'adapter'}"
        yield f"library_name: {'transformers' if self.merged else 'peft'}"
        yield "pipeline_tag: text-generation"
        yield "tags:"
        tags = ["personalization", "nextquill", *([] if self.merged else ["lora", "peft"])]
        yield from (f"- {_quoted(tag)}" for tag in sorted({*tags, self.method}))

    def _opening(self) -> str:
        what = "The base model with a LoRA adapter merged into its weights" if self.merged else "A LoRA adapter"
        article = "an" if self.writes[0] in "ae" else "a"
        one = f"{article} {self.writes}{' of an item' if self.writes == 'review' else ''}"
        how = f"as one user would, from that user's past {self._texts}" if self.history else "without a user's history"
        return (
            f"{what}, trained as `{self.method}` ({self.summary}) by the method of [NextQuill]({PAPER}): it writes "
            f"{one} {how}. Fingerprint of the training: `{self.fingerprint}`."
        )

    @property
    def _texts(self) -> str:
        return WORDINGS[self.writes].texts

    def _use(self) -> str:
        revision = f', revision="{self.revision}"' if self.base_id and self.revision != "main" else ""
        if self.merged:
            serve = "vllm serve MODEL_FOLDER"
        else:
            rank = next((rank for rank in VLLM_RANKS if rank >= self.rank), self.rank)
            flag = f" --revision {self.revision}" if revision else ""
            serve = (
                f"vllm serve {self.base_id or 'BASE_MODEL_FOLDER'}{flag} --enable-lora --max-lora-rank {rank} \\\n"
                f"    --lora-modules {self.method}=ADAPTER_FOLDER"
            )
        return f"```python\n{self._loading(revision)}```\n\nWith vLLM:\n\n```\n{serve}\n```"

    def _loading(self, revision: str) -> str:
        """Return Python code that loads model and tokenizer; a base model without hub name comes from its folder."""
        if self.merged:
            return (
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                'model = AutoModelForCausalLM.from_pretrained("MODEL_FOLDER")\n'
                'tokenizer = AutoTokenizer.from_pretrained("MODEL_FOLDER")\n'
            )
        if self.base_id:
            return (
                "from peft import AutoPeftModelForCausalLM\n"
                "from transformers import AutoTokenizer\n\n"
                'model = AutoPeftModelForCausalLM.from_pretrained("ADAPTER_FOLDER")\n'
                f'tokenizer = AutoTokenizer.from_pretrained("{self.base_id}"{revision})\n'
            )
        return (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'base = AutoModelForCausalLM.from_pretrained("BASE_MODEL_FOLDER")\n'
            'model = PeftModel.from_pretrained(base, "ADAPTER_FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("BASE_MODEL_FOLDER")\n'
        )

    def _needed(self) -> str:
        files = "\n".join(
            ["| file | SHA-256 |", "|---|---|", *(f"| {name} | `{sum_}` |" for name, sum_ in self.base_files)]
        )
        return (
            f"BASE_MODEL_FOLDER is the folder of {self.base}, which has no name on the Hugging Face hub. The adapter "
            f"needs it; take these files along:\n\n{files}"
        )

    def _prompt(self) -> str:
        history = (SHOWN_HISTORY,) if self.history else ()
        wording = WORDINGS[self.writes]
        prompt = build_prompt(SHOWN_ITEM, 5.0, "Could not put it down", history, wording=wording)
        around = (
            "It is one user turn of the tokenizer's chat template."
            if self.template == "chat"
            else "It is given as it stands, without a chat template; the answer follows the last line break."
        )
        shown = f"The newest past {self._texts}, the oldest of them first" if self.history else "No history is shown"
        return f"{shown}. {around}\n\n```\n{prompt}```"

    def _limits(self) -> str:
        return "\n".join(
            [
                f"- Not an assistant: it continues one prompt, the one above, with one {self.writes}.",
                "- Not the paper authors' model: it was trained by an independent implementation.",
                "- Not measured by this card: the last training step says that training went on, not how good the "
                "texts are.",
                "- Not anonymous: it was trained on what people wrote and may repeat it. Texts written in a user's "
                "manner must not be passed off as that user's own.",
                "- Not licensed by this card: the terms of the base model and of the data apply.",
            ]
        )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _table(rows: Rows) -> str:
    lines = ["| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
