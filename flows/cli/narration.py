"""Show one review of a synthetic world beside the log of a run: first its true taste words, then estimated effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import UserError

if TYPE_CHECKING:
    from nextquill_core.pipeline import Step
    from nextquill_core.pipeline.run import Outcome, Run

NARROW = 80
"""Columns of a narration that is no terminal."""


class TasteNarrator:
    """A `flows.stage.Narrator` for runs on a synthetic world; it says nothing about other data.

    Before the base model is trained, it shows a review with its true words of taste. After scoring, it shows the same
    review by estimated effect.
    """

    def before(self, run: Run, step: Step) -> None:
        """Show the true words of taste while the base model trains."""
        if step.kind != "model" or run.freshness(step).state == "fresh":
            return
        from nextquill_core.analysis.taste_view import exact_view
        from nextquill_core.pipeline.methods import measured_examples
        from nextquill_core.pipeline.truths import clearest, truths_of, words_of

        try:
            truths = truths_of(run)
            example = clearest(measured_examples(run)[0], truths)
            words = words_of(truths, example)
        except UserError:  # no synthetic world
            return
        _print(exact_view(example, words, run.config.weights.delta))

    def after(self, run: Run, step: Step, outcome: Outcome) -> None:
        """Show the estimated effects once the reviews are scored.

        Args:
            run: The run.
            step: The step that was made or reused.
            outcome: Its outcome; nothing is shown where it was reused.
        """
        if step.name != run.plan.score.name or outcome.reused:
            return
        from nextquill_core.analysis.exact_effects import agreement
        from nextquill_core.analysis.taste_view import estimated_view
        from nextquill_core.pipeline.methods import measured_examples
        from nextquill_core.pipeline.report.example import scored_units
        from nextquill_core.pipeline.score import read_effects
        from nextquill_core.pipeline.truths import clearest, exact_word_effects, truths_of, words_of

        try:
            truths = truths_of(run)
            examples, _ = measured_examples(run)
            example = clearest(examples, truths)
            effects = read_effects(run.artifact(run.plan.score).folder, examples)
            mine, pairs = (exact_word_effects(run, some, effects, truths) for some in ([example], examples))
        except UserError:
            return
        if not pairs:
            return
        words, delta = words_of(truths, example)[: len(mine)], run.config.weights.delta
        estimates = [estimate for estimate, _ in mine]
        units = scored_units(run, effects[example.example_id])
        _print(estimated_view(example, words, units, estimates, agreement(pairs, delta), delta))


def _print(shown: Any) -> None:
    """Print on the standard error, between two blank lines; in colour on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=NARROW)
    console.print()
    console.print(shown)
    console.print()
