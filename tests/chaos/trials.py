"""Number and seeds of trials, and a table of their results.

An ordinary test run makes a few trials of each kind, always the same ones. `make chaos` makes CHAOS_TRIALS of each kind
(or all that there are), chosen by CHAOS_SEED. Both are environment variables, so a failed trial is repeated by running
its test with the same values.
"""

from __future__ import annotations

import itertools
import os
import random
import traceback
from collections.abc import Callable, Iterable, Sequence

TRIALS = int(os.environ.get("CHAOS_TRIALS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
MINUTES = float(os.environ.get("CHAOS_MINUTES", "0"))

_notes: list[str] = []
_ended: dict[str, list[tuple[int, str]]] = {}  # by kind: the case, and what broke ("" if it held)


def seeds(few: int) -> range:
    """Return the seeds of trials that draw at random: `few`, or CHAOS_TRIALS of them."""
    return range(SEED * 10_000, SEED * 10_000 + (TRIALS or few))


def chosen(cases: Sequence[int], few: int) -> list[int]:
    """Return `few` of the cases, or CHAOS_TRIALS of them, spread over all and chosen by the seed."""
    count = min(len(cases), TRIALS or few)
    bounds = [len(cases) * part // count for part in range(count + 1)]
    draw = random.Random(SEED)
    return [cases[draw.randrange(low, high)] for low, high in itertools.pairwise(bounds)]


def hold(kind: str, cases: Iterable[int], trial: Callable[[int], object]) -> None:
    """Make one trial for each case; fail at the end, naming the cases that broke.

    Args:
        kind: What is tried, for the table.
        cases: Seeds or numbers.
        trial: Raises an error if the promise is broken.
    """
    ended = _ended.setdefault(kind, [])
    broken = []
    for case in cases:
        try:
            trial(case)
        except Exception as error:
            broken.append(f"case {case}: {''.join(traceback.format_exception(error))}")
            ended.append((case, str(error)))
        else:
            ended.append((case, ""))
    assert not broken, f"{kind}: {len(broken)} broke\n" + "\n".join(broken[:5])


def note(line: str) -> None:
    """Write a line below the table: the result of a test that counts no trials."""
    _notes.append(line)


def table() -> list[str]:
    """Return the lines of a Markdown table: kind of trial, trials, held, broke; and the notes below it."""
    if not _ended:
        return _notes
    lines = [f"seed {SEED}", "| Kind of trial | Trials | Held | Broke |", "|---|---:|---:|---|"]
    for kind, ended in _ended.items():
        broke = [case for case, fault in ended if fault]
        shown = f"{len(broke)} (cases {', '.join(map(str, broke[:10]))})" if broke else "0"
        lines.append(f"| {kind} | {len(ended)} | {len(ended) - len(broke)} | {shown} |")
    return lines
