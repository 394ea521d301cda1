"""The proof that a served adapter is the one that was trained: its log-likelihoods, on a true review of the store.

An adapter under a right name may still be another one, or not be applied at all; its texts would look like reviews. So
the backend scores a true review under the adapter and under the base model. Both must differ, and those under the
adapter must be the ones that evaluation stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from nextquill_core.errors import UserError
from nextquill_core.pipeline.evaluation_plan import OWN
from nextquill_core.records import TokenPair
from nextquill_core.serving.backend import Backend
from nextquill_core.serving.catalog import ServedMethod
from nextquill_core.writing.histories import Histories
from storage import Artifact, Store
from storage.tables import read_table

PROBED = 4
"""Number of examples of which one must prove it; an adapter may leave single reviews nearly as they were."""
NEARER = 0.5
"""How much nearer than the base model's the adapter's log-likelihoods must be to the stored ones."""
TOLERANCE = {"float32": 0.01}
ROUGH_TOLERANCE = 0.15
"""Mean difference that rounding may make, nats a token; the second one in half precision."""
APART = 1e-6


def probe(
    backend: Backend,
    served: ServedMethod,
    store: Store,
    reference: Callable[[TokenPair], list[float]] | None = None,
) -> str:
    """Prove that a backend serves the adapter of a method, and return one line with the numbers.

    Args:
        backend: The backend, which has loaded the adapter.
        served: A method with an adapter.
        store: The store with the log-likelihoods that evaluation computed.
        reference: Returns the log-probabilities of an answer under the adapter, nats, where none are stored; None to
            prove only that the adapter is applied.

    Raises:
        UserError: The adapter is not applied, or it is another one.
    """
    adapter = served.origin.adapter
    if adapter is None:
        raise ValueError(f"{served.name} has no adapter")
    name, tolerance = adapter.manifest.fingerprint, TOLERANCE.get(served.origin.model.dtype, ROUGH_TOLERANCE)
    applied, nearest = False, ""
    for pair, expected in islice(_examples(served, adapter, store), PROBED):
        mine = backend.score(name, pair).result()[0].tolist()
        base = backend.score(None, pair).result()[0].tolist()
        apart = _distance(mine, base)
        applied = applied or apart > APART
        if not expected and reference is not None:
            expected = reference(pair)
        if not expected:
            if applied:
                return f"adapter {name} is applied: {apart:.4f} nats a token from the base model"
            continue
        off, base_off = _distance(mine, expected), _distance(base, expected)
        nearest = f"{off:.4f} nats a token from the local log-likelihoods, the base model {base_off:.4f}"
        if applied and off <= tolerance and off <= NEARER * base_off:
            return f"adapter {name} answers as trained: {nearest}"
    where = f"adapter {name}"
    if not applied:
        raise UserError("it answers as the base model does", where, "load the adapter from its folder in the store")
    raise UserError(f"it does not answer as trained: {nearest}", where, "serve this adapter on its own base model")


def _distance(first: list[float], second: list[float]) -> float:
    """Return the mean absolute difference of two lists of log-probabilities, nats a token."""
    return sum(abs(one - other) for one, other in zip(first, second, strict=True)) / len(first)


def _examples(served: ServedMethod, adapter: Artifact, store: Store) -> Iterator[tuple[TokenPair, list[float]]]:
    """Yield true reviews with their stored log-likelihoods, nats; without any, reviews with an empty list."""
    found, method = False, served.origin.method.trained_as
    for measured in store.newest_first("likelihood"):
        identity = measured.manifest.identity
        plain = identity.get("past") == OWN and identity.get("method") == method
        if not plain or adapter.ref not in measured.manifest.inputs:
            continue
        for path in sorted((measured.folder / "likelihoods").glob("*.parquet"))[:1]:
            for row in read_table(path).slice(0, 4 * PROBED).to_pylist():
                pair = _pair(served, row["example_id"])
                if pair is not None and len(pair.target) == len(row["logp"]):
                    found = True
                    yield pair, row["logp"]
        if found:
            return
    people = served.prompter.people
    for example_id in _first_examples(people.histories) if people else ():
        pair = _pair(served, example_id)
        if pair is not None:
            yield pair, []


def _pair(served: ServedMethod, example_id: str) -> TokenPair | None:
    """Return the prompts and the true review of an example, or None if the histories do not have it any more."""
    try:
        example = served.prompter.stored_example(example_id)
    except UserError:
        return None
    return served.prompter.encoder.encode([example])[0]


def _first_examples(histories: Histories) -> list[str]:
    paths = sorted((histories.folder / "examples").glob("*.parquet"))[:1]
    rows = [row for path in paths for row in read_table(path, ["example_id", "target"]).slice(0, 100).to_pylist()]
    return [row["example_id"] for row in rows if row["target"] > 0]
