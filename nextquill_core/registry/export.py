"""Export to a folder outside the store: a trained adapter, as it is or merged into its base model, or training data."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from nextquill_core.errors import ModelError, UserError
from nextquill_core.methods.registry import METHODS
from nextquill_core.pipeline import method_weights
from nextquill_core.pipeline.model_card import adapter_card
from nextquill_core.pipeline.run import Run
from nextquill_core.pipeline.writing import describe_adapter, trained
from nextquill_core.writing import exported
from storage import write_json, write_text
from storage.files import user_path

if TYPE_CHECKING:
    from nextquill_core.training.data import TrainExample


def export(run: Run, name: str, folder: Path, *, merge: bool = False) -> None:
    """Write an adapter with the tokenizer, a model card and `nextquill.json` to `folder`.

    Args:
        run: The run; the adapter is in its store.
        name: Name of the method.
        folder: The folder to write, which must be empty or not exist. If writing fails, it is left as it was.
        merge: Whether to write the whole model with the adapter merged into it, in the base model's dtype.

    Raises:
        UserError: The method trains nothing, is not trained by this configuration or not trained yet, or the folder
            is not empty.
        ModelError: The base model cannot be read, merging gives weights that are not finite, or the merged model cannot
            be read back from its files.
    """
    from nextquill_core.model.loading import load_tokenizer

    artifact = trained(run, name)
    with _new_folder(folder) as unfinished:
        if merge:
            _write_merged(run, artifact.folder / "adapter", unfinished)
            _read_back(run, unfinished)
        else:
            shutil.copytree(artifact.folder / "adapter", unfinished, dirs_exist_ok=True)
        load_tokenizer(run.model).save_pretrained(str(unfinished))
        write_text(unfinished / "README.md", adapter_card(run, name, artifact.manifest.stats, merged=merge))
        about = describe_adapter(run, name, merged=merge)
        write_text(unfinished / exported.NAME, about.model_dump_json(indent=2) + "\n")


WEIGHTED = pa.schema(
    {
        "example_id": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "counterfactual_ids": pa.list_(pa.int32()),
        "target_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
    }
)
"""Columns of exported training data: the prompts with and without history, the answer and ω of its tokens."""
TRAIN, ABOUT = "train.parquet", "about.json"
ROWS = 256


def export_weights(run: Run, name: str, folder: Path) -> None:
    """Write the train examples of a method as token ids and weights, with the tokenizer, for other trainers.

    Args:
        run: The run; sequences, base model and, where the method reads them, weights are in its store.
        name: Name of the method.
        folder: The folder to write, which must be empty or not exist. If writing fails, it is left as it was.

    Raises:
        UserError: The method trains nothing, its weights come from the model in training, or an input is missing.
    """
    from nextquill_core.model.loading import encoder_for, load_tokenizer
    from nextquill_core.pipeline.train import train_order
    from nextquill_core.training.data import training_examples

    run.plan.adapter(METHODS[name].name)
    order = train_order(run, name, folder)
    if order.live_weights is not None:
        raise UserError(
            f"the weights of `{name}` come from the model in training", "--method", "name a method with stored weights"
        )
    tokenizer = load_tokenizer(run.model)
    with _new_folder(folder) as unfinished:
        examples, _ = training_examples(order, tokenizer)
        with pq.ParquetWriter(unfinished / TRAIN, WEIGHTED, compression="zstd", write_page_checksum=True) as file:
            for start in range(0, len(examples), ROWS):
                file.write_table(_weighted(examples[start : start + ROWS]))
        tokenizer.save_pretrained(str(unfinished))
        training = METHODS[name].training
        about = {
            "method": name,
            "base": asdict(run.base_name),
            "weights": method_weights(run.config, training) if training and order.weighted else "every token 1",
            "examples": len(examples),
            "stop_id": encoder_for(run.model, run.prompt, tokenizer).stop_id,
        }
        write_json(unfinished / ABOUT, about)


def _weighted(examples: Sequence[TrainExample]) -> pa.Table:
    columns = {
        "example_id": [example.pair.example_id for example in examples],
        "prompt_ids": [example.pair.factual for example in examples],
        "counterfactual_ids": [example.pair.counterfactual for example in examples],
        "target_ids": [example.pair.target for example in examples],
        "weights": [example.weights for example in examples],
    }
    return pa.table(columns, schema=WEIGHTED)


def _write_merged(run: Run, adapter: Path, folder: Path) -> None:
    import torch

    from nextquill_core.model.loading import load_adapter, load_model

    # On the CPU, merging billions of parameters takes a minute and needs no more memory than the model itself.
    base = load_model(run.model, torch.device("cpu"))
    adapted = load_adapter(base, adapter)
    try:
        merged = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"cannot merge it ({error})", str(adapter), "train again with a lower rate") from error
    merged.save_pretrained(str(folder), safe_serialization=True)


def _read_back(run: Run, folder: Path) -> None:
    """Load the merged model from its files by the function that loads every model, which checks all weights.

    Raises:
        ModelError: The files are not a whole model.
    """
    import torch

    from nextquill_core.model.loading import load_model

    try:
        load_model(run.model.model_copy(update={"name_or_path": str(folder), "revision": "main"}), torch.device("cpu"))
    except ModelError as error:
        remedy = "check the disk and its free space, then export again"
        raise ModelError(f"the merged model does not come back whole ({error.what})", str(folder), remedy) from error


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the name `folder` if the block ends without an error."""
    unfinished = folder.absolute().parent / f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with user_path(folder, "name another folder with --to"):
            if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
                raise UserError("there is something already", str(folder), "name a folder that does not exist yet")
            unfinished.mkdir(parents=True)
            yield unfinished
            unfinished.rename(folder)  # over an empty folder too
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
