"""A run opened for reading: its tables in several libraries, its examples with their texts, and its writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nextquill_core.config import Config
from nextquill_core.config.packaged import read_config
from nextquill_core.errors import UserError
from nextquill_core.plugins import suggestion
from nextquill_core.records import SPLITS

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from nextquill_core.pipeline.run import Run
    from nextquill_core.writing.writer import Writer
    from storage import Artifact

PARQUET = ".parquet"
REVIEW = ("item_id", "item_title", "item_description", "rating", "title", "text", "timestamp_ms")
"""Columns that describe a review in `Opened.examples`."""


def open(
    config: str | Path | Config, store: str | Path | None = None, overrides: Sequence[str] = (), *,
    preset: str | None = None, secret: str | None = None,
) -> Opened:  # fmt: skip
    """Open the run of a configuration for reading; nothing is made or downloaded.

    Args:
        config: YAML file, the name of a packaged configuration such as `demo`, or settings.
        store: Artifact store; replaces that of the configuration.
        overrides: `section.key=VALUE` texts, the values in YAML.
        preset: A preset to lay over the configuration: `paper`, `tuned` or a YAML file.
        secret: The key of the pseudonyms, if it does not come from the environment.

    Raises:
        UserError: The configuration is invalid, or raw files or the model folder are missing.
    """
    from nextquill_core.pipeline.run import Run

    if isinstance(config, Config):
        if overrides or preset is not None:
            raise UserError("overrides and preset change a file", "open", "change the settings, or name their file")
        settings = config if store is None else config.model_copy(update={"store": str(store)})
    else:
        settings = read_config(str(config), overrides, None if store is None else str(store), preset)
    return Opened(Run(settings, fetch=False, secret=secret))


class Opened:
    """A run opened for reading, as `open` returns it.

    Attributes:
        run: The configuration with its store and plan.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __repr__(self) -> str:
        return f"Opened(store={self.run.config.store!r})"

    def artifact(self, stage: str) -> StoredTables:
        """Return the tables of a stage.

        Args:
            stage: `ingest`, `score`, `train`, `train:METHOD`, `evaluate`, or another stage of `nextquill status`.

        Raises:
            UserError: There is no such stage, or its artifact has not been made.
        """
        step = self.run.plan.stage(stage)
        if step is None:
            names = [known.name for known in self.run.plan.stages]
            raise UserError(f"no stage {stage!r} in this configuration", "artifact", suggestion(stage, names))
        return StoredTables(self.run.artifact(step))

    def examples(self, split: str | None = None, *, newest: int | None = None) -> pl.DataFrame:
        """Return the examples with their texts.

        Args:
            split: `train`, `val` or `test`; None for all.
            newest: Number of past reviews in the history, the newest; None for all. Texts of a user are shared by the
                user's examples, so a long history takes little memory until it is copied.

        Returns:
            `example_id`, `user_id`, `category`, `split`, the target review (`item_id`, `item_title`,
            `item_description`, `rating`, `title`, `text`, `timestamp_ms`), and `history`, a list of structs with the
            same fields, oldest first.

        Raises:
            UserError: There is no such split, or the stage ingest has not been made.
        """
        import polars as pl

        if split is not None and split not in SPLITS:
            raise UserError(f"no split {split!r}", "split", f"use one of {', '.join(SPLITS)}")
        tables, user = self.artifact("ingest"), ["category", "user_id"]
        items = tables.polars("items").rename({"title": "item_title", "description": "item_description"})
        reviews = (
            tables.polars("sequences")
            .explode("reviews")
            .unnest("reviews")
            .join(items, on=["category", "item_id"], how="left", maintain_order="left")
            .select(*user, pl.struct(REVIEW).alias("reviews"))
            .group_by(user, maintain_order=True)
            .agg("reviews")
        )
        found = tables.polars("examples")
        found = found if split is None else found.filter(pl.col("split") == split)
        shown = pl.col("history") if newest is None else pl.col("history").list.tail(newest)
        return (
            found.join(reviews, on=user, how="left", maintain_order="left")
            .select(
                "example_id",
                "user_id",
                "category",
                "split",
                pl.col("reviews").list.get(pl.col("target")).alias("target"),
                pl.col("reviews").list.gather(shown).alias("history"),
            )
            .unnest("target")
        )

    def writer(self, method: str | None = None) -> Writer:
        """Return the writer of a method.

        Args:
            method: Name of the method; None for `train.method`.

        Raises:
            UserError: As for `nextquill_core.pipeline.writing.run_writer`.
        """
        from nextquill_core.pipeline.writing import run_writer

        return run_writer(self.run, method)


@dataclass(frozen=True)
class StoredTables:
    """The Parquet tables of an artifact.

    Attributes:
        artifact: The artifact in the store.
    """

    artifact: Artifact

    def __repr__(self) -> str:
        return f"StoredTables({self.artifact.location!r}, tables={list(self.tables)})"

    @property
    def folder(self) -> Path:
        """The folder of its files on this machine."""
        return self.artifact.folder

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of its tables: a folder of shards, or one file."""
        paths = [Path(shard.path) for shard in self.artifact.manifest.shards]
        names = (_table(path) for path in paths if path.suffix == PARQUET)
        return tuple(dict.fromkeys(names))

    def files(self, table: str) -> list[str]:
        """Return the files of a table on this machine, in order, for DuckDB and others that read Parquet.

        Raises:
            UserError: There is no such table.
        """
        shards = [
            shard
            for shard in self.artifact.shards(table)
            if shard.path.endswith(PARQUET) and _table(Path(shard.path)) == table
        ]
        if not shards:
            raise UserError(
                f"no table {table!r} in this artifact", self.artifact.location, suggestion(table, self.tables)
            )
        self.artifact.fetch(shards)
        return [str(self.artifact.home / shard.path) for shard in shards]

    def arrow(self, table: str) -> pa.Table:
        """Return a table as a `pyarrow.Table`."""
        import pyarrow as pa

        from storage.tables import read_table

        return pa.concat_tables([read_table(Path(path)) for path in self.files(table)])

    def polars(self, table: str) -> pl.DataFrame:
        """Return a table as a `polars.DataFrame`."""
        import polars as pl

        return cast("pl.DataFrame", pl.from_arrow(self.arrow(table)))

    def pandas(self, table: str) -> Any:
        """Return a table as a `pandas.DataFrame`; pandas must be installed."""
        return self.arrow(table).to_pandas()

    def dataset(self, table: str) -> Any:
        """Return a table as a `datasets.Dataset` in memory."""
        from datasets import Dataset

        return Dataset(self.arrow(table))


def _table(path: Path) -> str:
    """Return the name of the table that a Parquet file belongs to; every figure has a separate one."""
    if len(path.parts) == 1 or path.parts[0] == "figures":
        return path.with_suffix("").as_posix()
    return path.parent.as_posix()
