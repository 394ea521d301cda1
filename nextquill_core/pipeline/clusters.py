"""The step `clusters`: k-means clusters of the final hidden states that predict preference tokens.

It is no input of the evaluation, because no number depends on it: the report shows the clusters if they are there. The
tokens are a sample, so that the time does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline.evaluation_plan import OWN
from nextquill_core.pipeline.methods import adapted, base_model, method_encoder, shown_examples
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.score import read_effects
from nextquill_core.pipeline.step import Step
from nextquill_core.progress import Progress, advancing
from nextquill_core.schemas import CLUSTERS
from storage import Staging

FILE = "clusters.parquet"
OF_ONE_REVIEW = 20
"""Maximum number of tokens of one review in the sample."""


def build_clusters(run: Run, step: Step, staging: Staging, progress: Progress) -> dict[str, Any]:
    """Write the clusters of a sample of preference tokens of the measured split.

    A token's state is the one from which the trained method predicts it, with the history that the method shows.

    Args:
        run: The run; the effects and the method's adapter are in its store.
        step: `EvaluationPlan.clusters`.
        staging: Folder of the new artifact.
        progress: Receives the reviews that are done.
    """
    import torch

    from nextquill_core.analysis.state_clusters import cluster_states
    from nextquill_core.model.forward import answer_hidden_states

    method, delta = METHODS[step.settings["method"]], np.float32(run.config.weights.delta)
    examples = {one.example_id: one for one in shown_examples(run, method, run.config.evaluate.split, OWN)}
    effects = read_effects(run.artifact(run.plan.effects).folder, list(examples.values()))
    encoder = method_encoder(run, method)
    preferred = {
        name: [
            at for at, (effect, token) in enumerate(zip(answer.effect, answer.target_ids, strict=True))
            if effect > delta and token != encoder.stop_id
        ]
        for name, answer in ((name, effects[name]) for name in examples)
    }  # fmt: skip
    sample = draw_tokens(preferred, run.config.evaluate.pictured_tokens, seed=run.config.seed)
    rows: list[dict[str, Any]] = []
    states: list[NDArray[np.float32]] = []
    progress(0, 0, phase="loading the model")
    advance = advancing(progress, len(sample))
    trained = run.plan.train[method.name]
    with adapted(base_model(run.model), run.artifact(trained).folder / "adapter") as model, torch.inference_mode():
        for name, places in sample.items():
            (pair,) = encoder.encode([examples[name]])
            hidden_TD = answer_hidden_states(model, [pair.factual], [pair.target], packed=False)
            states.append(hidden_TD[places].float().cpu().numpy())
            rows += [{"example_id": name, "position": at, "effect": effects[name].effect[at]} for at in places]
            advance(1)
    found = cluster_states(np.concatenate(states), seed=run.config.seed) if states else None
    clusters: list[dict[str, Any]] = []
    if found:
        columns = zip(rows, found.labels_N.tolist(), found.map_N2.tolist(), strict=True)
        clusters = [{**row, "cluster": label, "x": x, "y": y} for row, label, (x, y) in columns]
    staging.write_table(FILE, pa.Table.from_pylist(clusters, schema=CLUSTERS))
    counts = {"preference_tokens": sum(map(len, preferred.values())), "tokens": len(rows), "reviews": len(sample)}
    return counts | ({"explained": found.explained, "silhouette": found.silhouette} if found else {})


def draw_tokens(preferred: Mapping[str, Sequence[int]], limit: int, *, seed: int) -> dict[str, list[int]]:
    """Draw preference tokens: reviews in random order, from each at most `OF_ONE_REVIEW` tokens, until they suffice.

    Few reviews go through the model then, and no long review has more than a small part of the sample.

    Args:
        preferred: Positions of the preference tokens, by example.
        limit: Number of tokens to draw; all of them if there are fewer.
        seed: Seed of the draws; the order of the examples does not matter.

    Returns:
        The drawn positions in ascending order, by example.
    """
    generator = np.random.default_rng(seed)
    names = sorted(name for name, places in preferred.items() if places)
    sample: dict[str, list[int]] = {}
    missing = limit
    for number in generator.permutation(len(names)):
        if missing <= 0:
            break
        places = preferred[names[number]]
        count = min(len(places), OF_ONE_REVIEW, missing)
        sample[names[number]] = sorted(generator.choice(places, count, replace=False).tolist())
        missing -= count
    return sample
