"""How many examples a run has, and how many tokens they have: from its sequences, or from what is known of the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from nextquill_core.config import Config, PromptConfig, ProtocolConfig
from nextquill_core.errors import UserError
from nextquill_core.ingest.reader import read_examples
from nextquill_core.pipeline.plan import Plan
from nextquill_core.prompts import WORDINGS, build_prompt
from nextquill_core.records import SPLITS, Example, TokenPair
from storage import Artifact

LOOKED_AT = 64
"""Number of examples of a split whose tokens are counted."""
CHARACTERS_A_TOKEN = 4.2
"""Characters of English text in one token, where the tokenizer is not on this machine."""
SHARED_FROM = 16
"""Number of tokens from which the common beginning of both prompts is computed once."""


@dataclass(frozen=True)
class Lengths:
    """Mean numbers of tokens of an example.

    Attributes:
        prompt: The prompt with history.
        bare: The prompt without history.
        opening: What both prompts begin with, which is computed once.
        answer: The true review with its stop token.
    """

    prompt: float
    bare: float
    opening: float
    answer: float

    def within(self, prompt: PromptConfig) -> Lengths:
        """Return these lengths under the limits of a configuration.

        Args:
            prompt: Its section `prompt`.
        """
        review = (self.prompt - self.bare) / PromptConfig().max_history
        bare = min(self.bare, prompt.max_prompt_tokens / 2)
        return Lengths(
            min(bare + review * prompt.max_history, prompt.max_prompt_tokens),
            bare,
            min(self.opening, bare),
            min(self.answer, prompt.max_target_tokens),
        )


ASSUMED = Lengths(prompt=1790, bare=199, opening=177, answer=365)
"""Lengths of real reviews under the paper's settings, with a tokenizer of 8,192 tokens (docs/BENCHMARKS.md)."""


@dataclass(frozen=True)
class Category:
    """What is published of a category.

    Attributes:
        examples: Number of examples by split.
        users: Number of users.
        history: About how many past texts a test example has.
        reviews: Rows of reviews, or of whole examples.
        raw_bytes: About the size of the raw files.
        source: Where the numbers are from.
    """

    examples: Mapping[str, int]
    users: int
    history: float
    reviews: float
    raw_bytes: float
    source: str


REVIEW_BYTES, ITEM_BYTES = 650, 3100
"""Bytes of a raw review and of a raw item of Amazon Reviews 2023."""
AMAZON_HISTORY = 30.0
"""Past reviews of a test example; a user has 18 to 500. The number is a guess, on which little depends."""


def _amazon(users: int, train: int, reviews: float, items: float) -> Category:
    return Category(
        {"train": train, "val": users, "test": users}, users, AMAZON_HISTORY, reviews,
        reviews * REVIEW_BYTES + items * ITEM_BYTES, "the paper, and the data set's page",
    )  # fmt: skip


PUBLISHED: Mapping[tuple[str, str], Category] = {
    ("dpl", "Books"): _amazon(317, 2_536, 29.5e6, 4.4e6),
    ("dpl", "Movies_and_TV"): _amazon(1_925, 15_400, 17.3e6, 747.8e3),
    ("dpl", "CDs_and_Vinyl"): _amazon(1_754, 14_032, 4.8e6, 701.7e3),
    ("published", "topic_writing_user"): Category(
        {"train": 11_442, "val": 2_453, "test": 2_452}, 16_347, 40.0, 16_347, 467e6, "the data set's page"
    ),
    ("published", "product_review_user"): Category(
        {"train": 14_745, "val": 1_826, "test": 1_822}, 18_393, 40.0, 18_393, 857e6, "the data set's page"
    ),
}
"""Sizes of categories that are known without their files, by protocol and category."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run.

    Attributes:
        examples: Number of examples by split.
        users: Number of users.
        history: Mean number of past reviews of a measured example.
        lengths: Mean numbers of tokens.
        reviews: Rows of reviews by category; 0 where they are not known.
        raw_bytes: Size of the raw files by category; 0 where it is not known.
        counted: Where the numbers of examples are from.
        measured: Where the lengths are from.
    """

    examples: Mapping[str, int]
    users: int
    history: float
    lengths: Lengths
    reviews: Mapping[str, float]
    raw_bytes: Mapping[str, float]
    counted: str
    measured: str


def known_sizes(plan: Plan, users: int | None = None) -> Sizes:
    """Return the sizes of a run whose sequences have not been made.

    Args:
        plan: Its plan.
        users: Number of users to assume where nothing is known.

    Raises:
        UserError: Nothing is known, and no number is given.
    """
    config = plan.config
    found = [_category(config, raw.category, raw.synthetic, users) for raw in config.ingest.inputs]
    on_disk = {raw.category: float(sum(path.stat().st_size for path in {*raw.reviews, *raw.items}))
               for raw in plan.files}  # fmt: skip
    total = sum(one.examples["test"] for one in found)
    return Sizes(
        {split: sum(one.examples[split] for one in found) for split in SPLITS},
        sum(one.users for one in found),
        sum(one.history * one.examples["test"] for one in found) / total,
        ASSUMED.within(config.prompt),
        {raw.category: one.reviews for raw, one in zip(config.ingest.inputs, found, strict=True)},
        {raw.category: on_disk[raw.category] or one.raw_bytes
         for raw, one in zip(config.ingest.inputs, found, strict=True)},
        "; ".join(dict.fromkeys(one.source for one in found)),
        "of real reviews under the paper's settings, cut to these limits; exact after `nextquill ingest`",
    )  # fmt: skip


def _category(config: Config, name: str, synthetic: Any, users: int | None) -> Category:
    protocol = config.ingest.protocol
    targets = protocol.n_targets
    known = PUBLISHED.get((protocol.name, name))
    as_published = protocol.name == "published" or protocol == ProtocolConfig()
    if known and as_published and not synthetic and users is None:
        return known
    count, source = (synthetic.users, "the synthetic category") if synthetic else (users, "--users")
    if count is None:
        raise UserError(
            f"the number of users of {name} is not known before its reviews are read",
            "ingest.inputs",
            "run `nextquill ingest` with the same config first, which needs no accelerator, or give a guess: --users N",
        )
    examples = {"train": count * (targets - 2), "val": count, "test": count}
    return Category(examples, count, AMAZON_HISTORY, 0, 0, source)


def stored_sizes(plan: Plan, artifact: Artifact, tokenizer: Any = None) -> Sizes:
    """Return the sizes of a run whose sequences are in the store.

    Args:
        plan: Its plan.
        artifact: The artifact of the ingest step.
        tokenizer: The base model's tokenizer; None counts characters instead.

    Raises:
        UserError: There is no example.
    """
    stats = artifact.manifest.stats
    counted = {split: int(stats["examples"].get(split, 0)) for split in SPLITS}
    if not any(counted.values()):
        raise UserError("there is no example", artifact.location, "check ingest.protocol")
    examples = _some(artifact.folder)
    measured = [example for example in examples if example.split == plan.config.evaluate.split] or examples
    return Sizes(
        counted,
        int(stats["users"]),
        mean(len(example.history) for example in measured),
        lengths(plan, examples, tokenizer),
        {name: float(of["reviews"]["read"]) for name, of in stats["per_category"].items()},
        {raw.category: float(sum(path.stat().st_size for path in {*raw.reviews, *raw.items})) for raw in plan.files},
        "the sequences in the store",
        f"of {len(examples)} examples, by {'the model’s tokenizer' if tokenizer else 'their characters'}",
    )


def _some(folder: Path) -> list[Example]:
    """Return the first examples of each split; one pass over the shards for each, in file order."""
    return [example for split in SPLITS for example in islice(read_examples(folder, (split,)), LOOKED_AT)]


def lengths(plan: Plan, examples: Sequence[Example], tokenizer: Any = None) -> Lengths:
    """Return the mean lengths of examples as the prompts of a plan show them.

    Args:
        plan: The plan.
        examples: The examples.
        tokenizer: The base model's tokenizer; None counts characters instead.
    """
    prompt = plan.config.prompt.model_copy(update={"template": plan.template.name, "writes": plan.writes})
    if tokenizer is None:
        return _by_characters(prompt, examples)
    from nextquill_core.model.loading import encoder_for

    return of_pairs(encoder_for(plan.base, prompt, tokenizer).encode(examples))


def of_pairs(pairs: Sequence[TokenPair]) -> Lengths:
    """Return the mean lengths of token pairs."""
    return Lengths(
        mean(len(pair.factual) for pair in pairs),
        mean(len(pair.counterfactual) for pair in pairs),
        mean(_shared(pair.factual, pair.counterfactual) for pair in pairs),
        mean(len(pair.target) for pair in pairs),
    )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    shared = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return shared if shared >= SHARED_FROM else 0


def _by_characters(prompt: PromptConfig, examples: Iterable[Example]) -> Lengths:
    wording = WORDINGS[prompt.writes if prompt.writes != "auto" else "review"]
    rows = []
    for example in examples:
        target = example.target
        shown = example.history[-prompt.max_history :] if prompt.max_history else ()
        with_history, bare = (
            len(build_prompt(target.item, target.rating, target.title, history, wording=wording)) / CHARACTERS_A_TOKEN
            for history in (shown, ())
        )
        bare = min(bare, prompt.max_prompt_tokens / 2)
        answer = min(len(target.text) / CHARACTERS_A_TOKEN + 1, prompt.max_target_tokens)
        rows.append((min(with_history, prompt.max_prompt_tokens), bare, answer))
    prompts, bares, answers = (mean(column) for column in zip(*rows, strict=True))
    return Lengths(prompts, bares, ASSUMED.opening / ASSUMED.bare * bares, answers)
