"""The pictures that the paper shows, collected from the artifacts of a run; for a missing one, how to get it.

Sweeps and clusters are no inputs of an evaluation: they are shown if the store has them when the report is drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextquill_core.analysis import paper_figures
from nextquill_core.analysis.example_view import ExplainedExample
from nextquill_core.analysis.paper_figures import HistoryDifferences
from nextquill_core.analysis.preferred_words import WordCount, token_words, typical_words, word_counts
from nextquill_core.analysis.report import Picture, PictureGroup, draw
from nextquill_core.analysis.sweep_series import SYMBOLS, SweepSeries, sweep_series
from nextquill_core.evaluation.significance import bootstrap_interval
from nextquill_core.pipeline.clusters import FILE, OF_ONE_REVIEW
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.step import Step
from nextquill_core.pipeline.sweep_points import SPLIT, stored_sweeps, sweep_document
from nextquill_core.schemas import Example, column_by_example
from storage.tables import read_table

REFERENCE = "contextsft"
SWEPT = {"train.alpha": "0.01,0.05,0.1", "weights.high": "0.7,0.8,0.9"}
"""The keys that the paper sweeps, with its values."""
REDRAW = "`nextquill report --redraw` with the same configuration"
BINS = 40
SHOWN = 0.995
"""Share of the differences that lie between the outermost edges."""
CLOUD_WORDS, BAR_WORDS, TYPICAL_WORDS = 40, 15, 8
MOST_CATEGORIES = 4


def paper_pictures(run: Run, explained: Sequence[ExplainedExample], *, users: Sequence[str]) -> list[PictureGroup]:
    """Return the pictures of the paper by subject.

    Args:
        run: The run; everything but the evaluation is in its store.
        explained: The measured examples.
        users: The user of each example.
    """
    return [
        _sweeps(run),
        _differences(run, [one.example for one in explained], users),
        _clusters(run, explained),
        _words(run, explained),
    ]


def sweep_picture(found: SweepSeries, name: str) -> Picture:
    """Return the picture of what a key does.

    Args:
        found: What it does.
        name: File name without suffix.
    """
    return draw(
        name, paper_figures.sweep_plot(found), f"Sweep over {found.symbol}",
        f"Metrics at each value of {found.key}, measured on {SPLIT}, with 95 % intervals; the data have the numbers",
        f"Each metric at each value of {found.symbol}, on {SPLIT} ({found.category}; texts by {found.decoding} "
        "decoding). Lines up and down are 95 % intervals over users. Values whose intervals overlap widely are not "
        "shown to differ, and one training seed stands behind each. The best of several values looks better than it "
        "is: measure the one that you choose once on test.",
        found.rows,
    )  # fmt: skip


def _sweeps(run: Run) -> PictureGroup:
    """Return the pictures of the newest sweeps over α and λ around this configuration."""
    pictures: dict[str, Picture] = {}
    missing = dict(SWEPT)
    for artifact in stored_sweeps(run, run.reader, SWEPT):
        document = sweep_document(artifact)
        for key in [key for key in missing if key in document["points"][0]["values"]]:
            if found := sweep_series(document, key, [run.config.train.method]):
                pictures[f"sweep-{key.replace('.', '-')}"] = sweep_picture(found, f"sweep-{key.replace('.', '-')}")
                del missing[key]
        if not missing:
            break
    absent = ""
    if missing:
        grid = " ".join(f"{key}={values}" for key, values in missing.items())
        absent = (
            f"The store has no sweep over {' and '.join(SYMBOLS[key] for key in missing)} with all else as here: run "
            f"`nextquill sweep {grid}`, then {REDRAW}."
        )
    return PictureGroup("sweeps", "Sweeps of α and λ", pictures, absent, input=False)


def _differences(run: Run, examples: Sequence[Example], users: Sequence[str]) -> PictureGroup:
    """Return the picture of what history adds to the log-probability of each token, under the method and ContextSFT."""
    name, title = "log-probabilities", "With and without history"
    plan, method = run.plan.evaluation, run.config.train.method
    known = [one for one in dict.fromkeys((method, REFERENCE)) if one in plan.likelihoods]
    found = {
        one: _by_token(run, plan.likelihoods[one], plan.bare_likelihoods[one], examples)
        for one in known
        if one in plan.bare_likelihoods
    }
    absent = ""
    if missing := [one for one in dict.fromkeys((method, REFERENCE)) if one not in found]:
        absent = (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not measured with and without history: "
            "add the name to evaluate.methods (a method without history has no such difference), then run "
            "`nextquill evaluate`."
        )
    if not found:
        return PictureGroup(name, title, absent=absent)
    effects = column_by_example(run.artifact(run.plan.score).folder / "effects", "effect")
    delta = np.float32(run.config.weights.delta)
    preferred = [np.asarray(effects[one.example_id], dtype=np.float32) > delta for one in examples]
    edges = difference_edges([values for of in found.values() for values in of])
    resampling = {"samples": run.config.evaluate.bootstrap_samples, "seed": run.config.seed}
    panels: dict[str, list[HistoryDifferences]] = {}
    for label, chosen in (("All tokens", [np.ones_like(one) for one in preferred]), ("Preference tokens", preferred)):
        if any(one.any() for one in chosen):
            panels[label] = [
                history_differences(one, values, chosen, edges, users, **resampling) for one, values in found.items()
            ]
    rows = [
        {
            "tokens": label, "method": one.method, "above": low, "up_to": high, "share": share, "mean": one.mean,
            "ci_low": one.low, "ci_high": one.high, "n": one.tokens,
        }
        for label, of in panels.items()
        for one in of
        for low, high, share in zip(edges, edges[1:], one.share_B.tolist(), strict=False)
    ]  # fmt: skip
    picture = draw(
        "log-probabilities", paper_figures.difference_plot(panels, edges), "What history adds to each token",
        f"Histograms of the difference that history makes to the log-probability of tokens, {' and '.join(found)}",
        "For each token of the true reviews, its log-probability with the user's history minus that without, under "
        "each model. Right of 0, history makes the token likelier. Marks at the top are the means, with 95 % intervals "
        "over users; the outermost bins hold everything beyond them. The paper draws differences of logits; a "
        "log-probability is a logit without the part that softmax ignores, so these have a unit. The picture cannot "
        "show whether another user's history would do the same (the personal gain does), and preference tokens lean to "
        "the right in any model, because history made them likelier under the model that chose them.",
        rows,
    )  # fmt: skip
    return PictureGroup(name, title, {"log-probabilities": picture}, absent)


def _by_token(run: Run, own: Step, bare: Step, examples: Sequence[Example]) -> list[NDArray[np.float64]]:
    """Return log p with the own history minus log p without for each token of each example."""
    with_history, without = (
        column_by_example(run.artifact(step).folder / "likelihoods", "logp") for step in (own, bare)
    )
    return [np.subtract(with_history[one.example_id], without[one.example_id]) for one in examples]


def difference_edges(values: Sequence[NDArray[np.float64]]) -> list[float]:
    """Return the edges of bins of equal width around 0, of which one is 0, for nearly all of the differences.

    Args:
        values: The differences of each example.
    """
    size = np.abs(np.concatenate([np.zeros(1), *values]))
    end = max(float(np.quantile(size, SHOWN)), 1e-3)
    step = 10.0 ** math.floor(math.log10(end)) / 2
    end = step * math.ceil(end / step - 1e-9)
    return [round(float(edge), 12) for edge in np.linspace(-end, end, BINS + 1)]


def history_differences(
    method: str, values: Sequence[NDArray[np.float64]], chosen: Sequence[NDArray[np.bool_]], edges: Sequence[float],
    users: Sequence[str], *, samples: int, seed: int,
) -> HistoryDifferences:  # fmt: skip
    """Return how many tokens have which difference, and the mean.

    Args:
        method: The method.
        values: The difference of each token, by example.
        chosen: Whether each token counts, by example; one counts at least.
        edges: Edges of the bins, ascending.
        users: The user of each example.
        samples: Number of resamples of users.
        seed: Seed of the resampling.
    """
    kept = [one[mask.astype(bool)] for one, mask in zip(values, chosen, strict=True)]
    every = np.concatenate(kept)
    counts, _ = np.histogram(np.clip(every, edges[0], edges[-1]), edges)
    sums = np.array([(one.sum(), len(one)) for one in kept])
    mean = bootstrap_interval(sums, users, samples=samples, seed=seed)
    return HistoryDifferences(method, counts / len(every), mean.value, mean.low, mean.high, len(every))


def _clusters(run: Run, explained: Sequence[ExplainedExample]) -> PictureGroup:
    """Return the picture of the clusters of hidden states."""
    group = functools.partial(PictureGroup, "clusters", "Clusters of hidden states", input=False)
    step = run.plan.evaluation.clusters
    if step is None:
        return group(absent="evaluate.pictured_tokens is 0: set it to 2000, then run `nextquill evaluate`.")
    artifact = run.store.find(step.kind, step.fingerprint)
    if artifact is None:
        return group(absent=f"The clusters have not been computed: run `nextquill evaluate`, then {REDRAW}.")
    points = read_table(artifact.folder / FILE).to_pylist()
    stats = artifact.manifest.stats
    if not points:
        return group(
            absent=f"There are only {stats.get('tokens', 0)} preference tokens, too few for clusters: lower "
            "weights.delta, or measure more users."
        )
    of_example = {one.example.example_id: one for one in explained}
    known = {key: token_words(of_example[key]) for key in {row["example_id"] for row in points} if key in of_example}
    words = [known[row["example_id"]][row["position"]] if row["example_id"] in known else "" for row in points]
    labels = [row["cluster"] for row in points]
    typical = typical_words(labels, words, TYPICAL_WORDS)
    places = np.array([(row["x"], row["y"]) for row in points])
    every = stats["tokens"] == stats["preference_tokens"]
    drawn = "all of them" if every else (
        f"drawn with seed {run.config.seed}: reviews in random order, at most {OF_ONE_REVIEW} tokens of each"
    )  # fmt: skip
    picture = draw(
        "clusters", paper_figures.cluster_map(np.array(labels), places, typical),
        f"Hidden states of preference tokens under {run.config.train.method}",
        "Map of hidden states in clusters, with the typical words of each cluster",
        f"Each point is the last hidden state from which the trained model, with the user's history, predicts one "
        f"preference token of the {run.config.evaluate.split} reviews: {len(points):,} tokens of "
        f"{stats['reviews']:,} reviews, {drawn}. k-means finds the clusters in the first 50 principal components of "
        f"states of length 1; the map shows the first two, {stats['explained']:.0%} of the variance. Below: number of "
        f"the cluster, its tokens, and the words that are frequent in it and rare in others. Mean silhouette "
        f"{stats['silhouette']:.2f}: near 1 clusters lie apart, near 0 they touch. Distances on the map are "
        f"not those in the model, the number of clusters was set and not found, and nothing here shows that a cluster "
        f"is one preference.",
        [{**row, "word": word} for row, word in zip(points, words, strict=True)],
    )  # fmt: skip
    return group(pictures={"clusters": picture})


def _words(run: Run, explained: Sequence[ExplainedExample]) -> PictureGroup:
    """Return clouds and bars of the words that are preferred most often, for each category."""
    name, title = "words", "Words that history makes likelier"
    pictures: dict[str, Picture] = {}
    by_category: dict[str, list[ExplainedExample]] = {}
    for one in explained:
        by_category.setdefault(one.example.category, []).append(one)
    largest = sorted(by_category, key=lambda category: (-len(by_category[category]), category))
    for number, category in enumerate(largest[:MOST_CATEGORIES], 1):
        counts = word_counts(by_category[category])
        if counts:
            pictures |= dict(_word_pictures(run, counts, category, len(by_category[category]), number))
    absent = "" if pictures else (
        "No word of a measured review has an effect above δ: lower weights.delta, then run `nextquill run`."
    )  # fmt: skip
    if pictures and len(largest) > MOST_CATEGORIES:
        absent = f"The {MOST_CATEGORIES} categories with the most reviews are shown."
    return PictureGroup(name, title, pictures, absent)


def _word_pictures(
    run: Run, counts: Sequence[WordCount], category: str, reviews: int, number: int
) -> Iterator[tuple[str, Picture]]:
    """Yield the cloud and the bars of a category's words by file name; the name has a number, not the user's text."""
    split, delta = run.config.evaluate.split, run.config.weights.delta
    what = (
        f"A word counts at each place in the {reviews:,} {split} reviews where one of its tokens has an effect above "
        f"δ = {delta:g}; stop words are left out."
    )
    yield (
        f"word-cloud-{number}",
        draw(
            f"word-cloud-{number}", paper_figures.word_cloud(counts[:CLOUD_WORDS], seed=run.config.seed),
            f"Preference words, {category}",
            f"Words of {category} in sizes that grow with their number; the bars below have the numbers",
            f"The larger a word, the more often history makes it likelier. {what} Place and order mean nothing; words "
            "that found no room are left out.",
            list(_word_rows(counts[:CLOUD_WORDS])),
        ),
    )  # fmt: skip
    yield (
        f"words-{number}",
        draw(
            f"words-{number}", paper_figures.word_bars(counts[:BAR_WORDS]),
            f"Most frequent preference words, {category}",
            f"Bars of the {BAR_WORDS} most frequent preference words of {category}",
            f"At how many places history makes the word likelier, of all its places. {what} A frequent word can lead "
            "the list with a small share: then history matters at few of its places. The counts cannot show in which "
            "direction a user's taste goes.",
            list(_word_rows(counts)),
        ),
    )  # fmt: skip


def _word_rows(counts: Sequence[WordCount]) -> Iterator[Mapping[str, Any]]:
    for rank, one in enumerate(counts, 1):
        yield {"rank": rank, "word": one.word, "preferred": one.preferred, "places": one.places, "share": one.share}
