"""Effects and weights of one review under any causal language model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nextquill_core.causal.weights import Answers, TokenEffects, token_effects, token_weights, weight_settings
from nextquill_core.config.data import PromptConfig
from nextquill_core.config.messages import SEE
from nextquill_core.config.model import ModelConfig
from nextquill_core.config.score import WeightsConfig
from nextquill_core.errors import UserError
from nextquill_core.model.template_choice import choose_template
from nextquill_core.records import Example, Item, Review
from nextquill_core.writing.draft import ScoredToken, likelier_words
from nextquill_core.writing.requests import ItemFields, PastReview, checked
from nextquill_core.writing.scoring import score_pairs
from nextquill_core.writing.writer import Writer

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from nextquill_core.tokens import PairEncoder

EXAMPLE = "review"


@dataclass(frozen=True)
class ScoredReview:
    """A review with what the history says of each of its tokens.

    Attributes:
        scored: The tokens with their log-probabilities, effects and weights; the last one ends the review.
        history_shown: The past reviews in the prompt, oldest first.
    """

    scored: tuple[ScoredToken, ...]
    history_shown: tuple[Review, ...]

    @property
    def tokens(self) -> list[str]:
        """The text of each token."""
        return [token.text for token in self.scored]

    @property
    def logp_with(self) -> list[float]:
        """Log-probability of each token with the history, nats."""
        return [token.logp_with for token in self.scored]

    @property
    def logp_without(self) -> list[float]:
        """Log-probability of each token without the history, nats."""
        return [token.logp_without for token in self.scored]

    @property
    def effects(self) -> list[float]:
        """Causal effect of the history on each token: the difference of its probabilities (Eq. 4)."""
        return [token.effect for token in self.scored]

    @property
    def weights(self) -> list[float]:
        """Preference weight ω of each token (Eq. 3)."""
        return [token.weight or 0.0 for token in self.scored]

    def likelier_words(self, delta: float = 0.05) -> list[tuple[str, float]]:
        """Return the words that the history made likelier by more than δ, with their effect, the largest first."""
        return likelier_words(self.scored, delta)

    def to_polars(self) -> pl.DataFrame:
        """Return a row for each token."""
        import polars as pl

        names = ("text", "token_id", "logp_with", "logp_without", "p_with", "p_without", "effect", "weight")
        return pl.DataFrame({name: [getattr(token, name) for token in self.scored] for name in names})


def score(
    model: Any,
    review: Review | Mapping[str, Any],
    history: Iterable[Review | Mapping[str, Any]] = (),
    *,
    tokenizer: Any = None,
    prompt: PromptConfig | Mapping[str, Any] | None = None,
    weights: WeightsConfig | Mapping[str, Any] | None = None,
    batch_tokens: int = 16384,
) -> ScoredReview:
    """Return the tokens of a review with their log-probabilities with and without a history, effects and weights.

    Args:
        model: A causal language model of transformers in evaluation mode, with or without PEFT adapter; or a `Writer`,
            whose model, tokenizer and prompts are used.
        review: `item` (title and description), `rating`, `title` and `text`.
        history: Past reviews with the same fields, oldest first.
        tokenizer: The model's tokenizer; None loads it by the model's name.
        prompt: Settings as in the section `prompt` of a configuration; None for their defaults.
        weights: Settings as in the section `weights` of a configuration; None for their defaults.
        batch_tokens: Token positions of one forward pass.

    Raises:
        UserError: A field is missing or invalid.
        ModelError: Model, tokenizer and limits do not fit each other.
    """
    encoder = model.encoder if isinstance(model, Writer) else _encoder(model, tokenizer, prompt)
    past = tuple(_review(one, f"history, review {place}") for place, one in enumerate(history, 1))
    example = Example(EXAMPLE, "", "", "", _review(review, "review"), past)
    settings = weights if isinstance(weights, WeightsConfig) else checked(WeightsConfig, weights or {}, "weights", SEE)
    policy = weight_settings(**settings.fingerprint_fields())
    (pair,) = encoder.encode([example])

    def weigh(factual: Tensor, counterfactual: Tensor) -> list[float]:
        effects = TokenEffects(factual, counterfactual, token_effects(factual, counterfactual))
        answers = Answers([EXAMPLE], [pair.target], lambda _: encoder.shown_answers([example]))
        found: list[float] = token_weights(effects, answers, **policy).tolist()
        return found

    loaded = model.model if isinstance(model, Writer) else model
    (scored,) = score_pairs(loaded, encoder, [pair], batch_tokens, weigh)
    return ScoredReview(scored, encoder.shown_answers([example])[0].history)


def _encoder(model: Any, tokenizer: Any, prompt: PromptConfig | Mapping[str, Any] | None) -> PairEncoder:
    from nextquill_core.model.loading import encoder_for, load_tokenizer

    config = ModelConfig(name_or_path=model.config.name_or_path)
    settings = prompt if isinstance(prompt, PromptConfig) else checked(PromptConfig, prompt or {}, "prompt", SEE)
    template = choose_template(settings.template, config.name_or_path).name
    settings = settings.model_copy(update={"template": template})
    return encoder_for(config, settings, tokenizer if tokenizer is not None else load_tokenizer(config))


def _review(values: Review | Mapping[str, Any], where: str) -> Review:
    found = checked(PastReview, values, where)
    if not isinstance(found.item, ItemFields):
        raise UserError("an item id needs a store", where, "give item={'title': …, 'description': …}")
    return found.review(Item(found.item.title, found.item.description))
