"""The work of each step of a plan: operations of forward passes and of training, texts to generate, bytes to store.

Operations are those of matrix products and of attention, for examples of mean length, counted as in
`benchmarks/gpu.py`: two for each number of a frozen matrix and each token; in training twice as many, because gradients
of the inputs are computed too, and attention three times. What LoRA adds is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nextquill_core.config import Config
from nextquill_core.config.evaluate import PERSONAL_TARGETS
from nextquill_core.costs.shape import BYTES, LORA_BYTES, ModelShape
from nextquill_core.costs.sizes import Lengths, Sizes
from nextquill_core.methods.registry import BASE_ENCODER, METHODS, Method
from nextquill_core.pipeline.evaluation_plan import NONE
from nextquill_core.pipeline.plan import Plan
from nextquill_core.pipeline.step import Step

SCAN_S, SEQUENCES_S = 3.0e-6, 0.8e-6
"""Seconds a raw review on two cores (docs/BENCHMARKS.md), where the number of reviews is known."""
SCAN_BYTES_S = 5.8e-9
"""Seconds a raw byte on two cores, where the number is not known."""
CONVERTED_S = 1e-7
"""Seconds a number of a model on two cores, to convert a GGUF file."""
SCAN_STORED = 0.9
"""Bytes of a scan, of those of the raw files."""
REVIEW_STORED = 1200
"""Bytes of a review with its item in the sequences."""
EFFECT_STORED, WEIGHT_STORED, LOGP_STORED = 16, 20, 4
"""Bytes of a token in the effects, in the weights with the effects, and in the likelihoods."""
STATE_BYTES = 16
"""Bytes of a number of an adapter in a checkpoint, with AdamW's two moments and its own copy."""
BERT_BASE = 85e6
ENCODERS: Mapping[str, float] = {"facebook/contriever": BERT_BASE, "minilm": 10.6e6, "FacebookAI/roberta-large": 302e6}
"""Numbers in the layers of encoders; another one counts as Contriever does, a BERT-base."""
TEXT_S = 0.02
"""Seconds on two cores to measure one text: ROUGE, METEOR and BLEU."""
MEASURING_S = 20.0
"""Seconds on two cores for intervals, figures and the report."""
TASTE_SHARE = 0.1
"""Share of the tokens that are preference tokens, about."""


@dataclass(frozen=True)
class Answers:
    """Texts to generate.

    Attributes:
        count: Number of texts.
        tokens: Mean number of tokens in one, as long as the true reviews.
        most: Maximum number of tokens in one.
        prompt: Mean number of tokens of its prompt.
        branches: Number of prompts that each text continues at once.
    """

    count: float
    tokens: float
    most: float
    prompt: float
    branches: int = 1


@dataclass(frozen=True)
class Work:
    """The work of a step.

    Attributes:
        examples: Number of examples; 0 where it has none.
        forward: Operations of forward passes.
        training: Operations of training.
        answers: Texts to generate, whose prompts are in `forward`.
        processor: Seconds on two processor cores.
        loads: Number of times that a model is loaded.
        processes: Number of times that processes for training start.
        stored: Bytes of the artifact.
    """

    examples: float = 0
    forward: float = 0
    training: float = 0
    answers: tuple[Answers, ...] = ()
    processor: float = 0
    loads: int = 0
    processes: int = 0
    stored: float = 0


@dataclass(frozen=True)
class Operations:
    """Operations of one example.

    Attributes:
        frozen: In products with frozen matrices, forward.
        attention: In attention, forward.
    """

    frozen: float
    attention: float

    @property
    def forward(self) -> float:
        """Operations of a forward pass."""
        return self.frozen + self.attention

    @property
    def training(self) -> float:
        """Useful operations of a training pass with frozen matrices."""
        return 2 * self.frozen + 3 * self.attention

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.frozen + other.frozen, self.attention + other.attention)


def passed(shape: ModelShape, tokens: float, read: float, cached: float = 0) -> Operations:
    """Return the operations of a pass over tokens of one sequence.

    Args:
        shape: The model.
        tokens: Number of tokens.
        read: Number of them whose logits are computed.
        cached: Number of tokens before them whose keys and values are there already.
    """
    seen = tokens * cached + tokens * (tokens + 1) / 2
    return Operations(2 * (shape.body * tokens + shape.head * read), shape.attended * seen)


@dataclass(frozen=True)
class Branches:
    """The operations of an example of mean length, by which prompts are computed."""

    with_history: Operations
    without: Operations
    both: Operations

    @classmethod
    def of(cls, shape: ModelShape, lengths: Lengths) -> Branches:
        """Return the operations for a model and mean lengths; the common opening of both prompts counts once."""
        read = lengths.answer
        factual = passed(shape, lengths.prompt + read - 1, read)
        rest = passed(shape, lengths.bare - lengths.opening + read - 1, read, lengths.opening)
        return cls(factual, passed(shape, lengths.bare + read - 1, read), factual + rest)

    def shown(self, *, history: bool) -> Operations:
        """Return the operations of one branch."""
        return self.with_history if history else self.without


@dataclass(frozen=True)
class WorkCounter:
    """Counts the work of the steps of a plan.

    Attributes:
        plan: The plan.
        shape: The base model.
        sizes: The data.
    """

    plan: Plan
    shape: ModelShape
    sizes: Sizes
    branches: Branches = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "branches", Branches.of(self.shape, self.sizes.lengths))

    @property
    def config(self) -> Config:
        """The settings."""
        return self.plan.config

    @property
    def measured(self) -> int:
        """Number of examples in the measured split."""
        return self.sizes.examples[self.config.evaluate.split]

    @property
    def review(self) -> float:
        """Mean number of tokens of a past review as prompts show it."""
        shown = min(self.config.prompt.max_history, self.sizes.history)
        lengths = self.sizes.lengths
        return max((lengths.prompt - lengths.bare) / shown, lengths.answer) if shown >= 1 else lengths.answer

    def of(self, step: Step) -> Work:
        """Return the work of a step of the plan: what the method `_KIND` counts, if its kind has one."""
        count: Callable[[Step], Work] | None = getattr(self, f"_{step.kind}", None)
        return count(step) if count else Work()

    def _scan(self, step: Step) -> Work:
        name = step.name.partition(":")[2]
        raw, reviews = self.sizes.raw_bytes[name], self.sizes.reviews[name]
        return Work(processor=reviews * SCAN_S or raw * SCAN_BYTES_S, stored=SCAN_STORED * raw)

    def _ingest(self, step: Step) -> Work:
        kept = self.sizes.users * (self.sizes.history + 1)
        return Work(processor=sum(self.sizes.reviews.values()) * SEQUENCES_S, stored=kept * REVIEW_STORED)

    def _model(self, step: Step) -> Work:
        if self.config.model.name_or_path != "tiny":
            numbers = self.shape.parameters
            return Work(processor=numbers * CONVERTED_S, stored=numbers * BYTES[self.config.model.dtype])
        tiny, longest = self.config.model.tiny, self.sizes.lengths.prompt + self.sizes.lengths.answer
        tokens = tiny.steps * tiny.batch_tokens
        one = passed(self.shape, longest, longest)
        operations = (3 * one.frozen + 3 * one.attention) * tokens / longest
        return Work(training=operations, loads=1, stored=self.shape.parameters * BYTES["float32"])

    def _effects(self, step: Step) -> Work:
        split = step.settings.get("split")
        count = self.sizes.examples[split] if split else sum(self.sizes.examples.values())
        stored = count * self.sizes.lengths.answer * EFFECT_STORED
        return Work(count, forward=count * self.branches.both.forward, loads=1, stored=stored)

    def _score(self, step: Step) -> Work:
        count = sum(self.sizes.examples.values())
        return Work(stored=count * self.sizes.lengths.answer * WEIGHT_STORED)

    def _train(self, step: Step) -> Work:
        train, recipe, fold = self.config.train, step.settings["recipe"], step.settings.get("fold")
        live = recipe["weighted"] and step.settings["train"].get("weights_from") == "live"
        one = self.branches.both if recipe["causal"] or live else self.branches.shown(history=recipe["history"])
        share = 1 - 1 / fold["of"] if fold else 1.0
        count = self.sizes.examples["train"] * share
        steps = math.ceil(count / train.global_batch) * train.epochs
        validations = train.epochs if train.val_every is None else steps // train.val_every if train.val_every else 0
        looked_at = min(train.val_examples, self.sizes.examples["val"] * share)
        numbers = self.shape.lora(train.lora.r, train.lora.target_modules)
        checkpoints = min(train.keep_checkpoints, math.ceil(steps / train.checkpoint_every))
        return Work(
            count * train.epochs,
            forward=validations * looked_at * one.forward,
            training=count * train.epochs * one.training,
            processes=1,
            stored=numbers * (LORA_BYTES + checkpoints * STATE_BYTES),
        )

    def _relevance(self, step: Step) -> Work:
        texts = self.measured * (self.sizes.history + 1)
        forward = self._encoded(self.config.evaluate.retrieval.encoder, texts)
        return Work(self.measured, forward=forward, loads=1, stored=4 * texts)

    def _encoded(self, encoder: str, texts: float) -> float:
        """Return the operations of an encoder that reads texts of the length of a review."""
        numbers = self.shape.body if encoder == BASE_ENCODER else ENCODERS.get(encoder, BERT_BASE)
        return 2 * numbers * texts * self.review

    def _summaries(self, step: Step) -> Work:
        settings = self.config.evaluate.summaries
        older = max(0.0, self.sizes.history - settings.newest)
        count = self.measured * math.ceil(older / settings.block)
        prompt = min(settings.block * self.review + settings.max_tokens, self.config.prompt.max_prompt_tokens)
        return self._written(count, prompt, settings.max_tokens)

    def _written(self, count: float, prompt: float, tokens: int) -> Work:
        """Return the work of texts about users: `count` of at most `tokens` tokens, after prompts of some length."""
        return Work(
            self.measured,
            forward=count * passed(self.shape, prompt, 1).forward,
            answers=(Answers(count, tokens, tokens, prompt),),
            loads=1,
            stored=self.measured * 1000,
        )

    def _profiles(self, step: Step) -> Work:
        settings, longest = self.config.evaluate.profiles, self.config.prompt.max_prompt_tokens
        prompt = min(min(settings.reviews, self.sizes.history) * self.review, longest)
        profiles = self._written(self.measured, prompt, settings.max_tokens)
        if "peers" not in step.settings:
            return profiles
        compared = self.measured * min(settings.compared, self.sizes.history)
        pair = min((1 + settings.others) * self.review, longest)
        pairs = self._written(compared, pair, settings.difference_tokens)
        return replace(profiles, forward=profiles.forward + pairs.forward, answers=profiles.answers + pairs.answers)

    def _style(self, step: Step) -> Work:
        settings, lengths = self.config.evaluate.style, self.sizes.lengths
        reviews = self.sizes.users * min(settings.newest or self.sizes.history, self.sizes.history)
        texts = self._written(reviews, lengths.bare, settings.max_tokens)
        return replace(texts, forward=texts.forward + 2 * reviews * self.branches.without.forward)

    def _peers(self, step: Step) -> Work:
        settings = self.config.evaluate
        texts = (self.measured + self.sizes.examples["train"]) * min(settings.dep.reviews, self.sizes.history)
        return Work(self.measured, forward=self._encoded(settings.peers.encoder, texts), loads=1)

    def _soft(self, step: Step) -> Work:
        passes = self.sizes.examples["train"] * self.config.evaluate.dep.epochs
        return Work(passes, training=passes * self.branches.without.training, loads=1)

    def _personal(self, step: Step) -> Work:
        settings = self.config.evaluate.personal
        reviews = self.measured * self.sizes.history * settings.epochs
        numbers = self.shape.lora(settings.r, PERSONAL_TARGETS)
        return Work(
            self.measured,
            training=reviews * self.branches.without.training,
            loads=settings.folds,
            stored=self.measured * numbers * LORA_BYTES,
        )

    def _predictions(self, step: Step) -> Work:
        planned = self.plan.evaluation.prediction_set(step)
        method, lengths = METHODS[planned.method], self.sizes.lengths
        count = self.sizes.examples[planned.split]
        if self.config.evaluate.engine == "openai":
            return Work(count, stored=count * 4 * lengths.answer)  # a server generates
        prompts = self._prompts(method)
        return Work(
            count,
            forward=count * sum(passed(self.shape, prompt, 1).forward for prompt in prompts),
            answers=(Answers(count, min(lengths.answer, planned.limit), planned.limit, prompts[0], len(prompts)),),
            stored=count * 4 * lengths.answer,
        )

    def _prompts(self, method: Method) -> list[float]:
        """Return the lengths of the prompts that a text of a method continues."""
        lengths = self.sizes.lengths
        first = lengths.prompt if method.history else lengths.bare
        return [first, lengths.bare] if method.steered else [first, first] if method.contrasted else [first]

    def _likelihood(self, step: Step) -> Work:
        method = METHODS[step.settings["method"]]
        one = self.branches.shown(history=method.history and step.settings["past"] != NONE)
        if method.steered:
            one = self.branches.both
        elif method.contrasted:
            one = one + one
        count = self.measured
        return Work(count, forward=count * one.forward, stored=count * self.sizes.lengths.answer * LOGP_STORED)

    def _clusters(self, step: Step) -> Work:
        tokens = self.config.evaluate.pictured_tokens
        count = min(self.measured, math.ceil(tokens / (TASTE_SHARE * self.sizes.lengths.answer)))
        return Work(count, forward=count * self.branches.both.forward, loads=1)

    def _evaluate(self, step: Step) -> Work:
        planned = self.plan.evaluation
        texts = self.measured * (len(planned.predictions) + len(planned.controls))
        forward = 0.0
        if encoder := self.config.evaluate.retrieval.bertscore:
            forward = 2 * ENCODERS.get(encoder, BERT_BASE) * (texts + self.measured) * self.sizes.lengths.answer
        return Work(self.measured, forward=forward, processor=MEASURING_S + texts * TEXT_S, stored=texts * 2000)
