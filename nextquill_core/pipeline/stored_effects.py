"""The stored effects of history on the true reviews of some examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from nextquill_core.causal.summary import ScoredAnswer
from nextquill_core.schemas import EFFECTS, Example
from storage.tables import read_table

Effects = Mapping[str, ScoredAnswer]
"""The stored values of the tokens of true reviews, by example."""


def read_effects(folder: Path, examples: Sequence[Example]) -> dict[str, ScoredAnswer]:
    """Return the stored effects of examples.

    Args:
        folder: Folder of an artifact of the kind `effects` or `score`.
        examples: The examples; those of a split that was not scored are left out.

    Raises:
        Damaged: A file is damaged.
    """
    categories = {example.example_id: example.category for example in examples}
    wanted = pa.array(list(categories), pa.string())
    found: dict[str, ScoredAnswer] = {}
    for shard in sorted((folder / "effects").glob("*.parquet")):
        table = read_table(shard)
        for row in table.filter(pc.is_in(table["example_id"], value_set=wanted)).to_pylist():
            values = (tuple(row[name]) for name in EFFECTS.names[1:])
            found[row["example_id"]] = ScoredAnswer(row["example_id"], categories[row["example_id"]], *values)
    return found
