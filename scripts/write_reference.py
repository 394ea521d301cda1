"""Write the pages of docs/reference that are made from the code: `make reference`.

`configuration.md` comes from the classes of the configuration, `artifacts.md` from the schemas of the tables, and
`commands.md` from the command line. A test compares the pages with the output of this script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pyarrow as pa
import typer
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from flows.cli.main import app
from nextquill_core import schemas
from nextquill_core.config import Config, Section
from nextquill_core.config.base import MethodNames, description_of, section_of

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"

BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt"), MinLen: ("at least", "min_length")}


TABLES = (
    ("ingest", "sequences/*.parquet", schemas.SEQUENCES, "One row per user. `reviews` is in time order, oldest first."),
    ("ingest", "items/*.parquet", schemas.ITEMS, "One row per item that a kept review is about."),
    (
        "ingest",
        "examples/*.parquet",
        schemas.EXAMPLES,
        "`target` and `history` are positions in `reviews` of the same user; `split` is train, val or test.",
    ),
    ("ingest", "quarantine/*.parquet", schemas.QUARANTINE, "One row per input row that could not be read, and why."),
    (
        "effects, score",
        "effects/*.parquet",
        schemas.EFFECTS,
        "One row per example. Each list has one value per token of the true review and of the token that ends it: the "
        "token id, its log-probability with the history (factual) and without (counterfactual), and `effect`, the "
        "difference of the two probabilities.",
    ),
    (
        "score",
        "weights/*.parquet",
        schemas.WEIGHTS,
        "One row per example: the preference weight of each token of `target_ids` in `effects/`.",
    ),
    (
        "relevance",
        "relevance/*.parquet",
        schemas.RELEVANCE,
        "One row per example: the score of each earlier review, in the order of `history`.",
    ),
    ("summaries", "summaries/*.parquet", schemas.SUMMARIES, "A summary of the older reviews of the example's user."),
    (
        "profiles",
        "profiles/*.parquet",
        schemas.SUMMARIES,
        "What the base model says of the example's user, for the methods `pag` and `dpl`.",
    ),
    (
        "profiles",
        "differences/*.parquet",
        schemas.DIFFERENCES,
        "One row per past review that `dpl` compares: its position in `history`, the number of others' reviews beside "
        "it, and what the base model says of the difference.",
    ),
    (
        "style",
        "neutral/*.parquet",
        schemas.NEUTRAL,
        "One style-free text per past review. `vectors/*.safetensors` beside it has one tensor per example: the style "
        "vector after each depth that the method tries.",
    ),
    ("soft", "soft/training.parquet", schemas.SOFT_TRAINING, "Losses of each optimizer step of the soft tokens."),
    (
        "predictions, evaluate",
        "predictions/*.parquet",
        schemas.PREDICTIONS,
        "One generated review per example, method and decoding preset; `controls/*.parquet` has the same columns.",
    ),
    (
        "likelihood",
        "likelihoods/*.parquet",
        schemas.LIKELIHOODS,
        "One row per example: the log-probability of each token of the true review under a method's model, in nats.",
    ),
    (
        "rubrics",
        "rubrics/*.parquet",
        schemas.RUBRICS,
        "The rubric of the example's user, with the question to the judge and its answer.",
    ),
    (
        "judged",
        "judged/*.parquet",
        schemas.JUDGED,
        "One row per text and aspect: question, answer and points, 0 to 2, null where no answer could be read.",
    ),
    (
        "clusters",
        "clusters.parquet",
        schemas.CLUSTERS,
        "One row per preference token of the sample: its position in the answer, the cluster of the hidden state that "
        "predicts it (0 is the largest), and the state's place on the first two principal components.",
    ),
    ("evaluate", "metrics.parquet", schemas.METRICS, "One row per method, category, decoding preset and metric."),
    (
        "evaluate",
        "slices.parquet",
        schemas.SLICES,
        "The same on parts of the examples. The difference between a method and its control has p-values.",
    ),
    (
        "evaluate",
        "examples.parquet",
        schemas.EXAMPLE_SCORES,
        "The scores of single examples. `bleu` is the sentence score; `bleu_counts` (matching and possible n-grams of "
        "orders 1 to 4, then both lengths) add up to the corpus score. Log-likelihoods and gains are sums in "
        "nats over the tokens counted beside them.",
    ),
    ("sweep", "metrics.parquet", schemas.SWEEP, "Validation metrics of each point of a sweep; `values` is JSON."),
)
"""Stages or steps, files, schema, and a note for the reader."""


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


def configuration() -> str:
    """Return the page of all settings: a table for each section, a row for each key."""
    lines = [
        "# Configuration",
        "",
        "Look up a setting, its default and its unit. A configuration is a YAML file with the sections below. Values",
        "given as `--set section.key=VALUE` (in YAML) replace those of the file, which replace the defaults. Unknown",
        "keys are refused. A key marked ○ says how a stage runs, not what it makes: it never makes an artifact stale.",
        "Defaults are the paper's where the paper states one.",
    ]
    sections: list[tuple[str, type[Section], bool]] = [("top level", Config, False), *_sections(Config)]
    for name, section, operational in sections:
        lines += ["", f"## {name}", "", *((section.__doc__ or "").splitlines()[:1]), ""]
        lines += ["| key | default | values | |", "|---|---|---|---|"]
        fields = section.model_fields.items()
        lines += [_row(key, field, operational) for key, field in fields if section_of(field) is None]
    return "\n".join(lines) + "\n"


def artifacts() -> str:
    """Return the page of the tables in artifacts: their files, columns and types."""
    lines = [
        "# Artifact columns",
        "",
        "Look up which Parquet files an artifact has, and their columns. An artifact is the folder",
        "`STORE/KIND/FINGERPRINT/`; `nextquill path STAGE --config FILE` prints it. Times are UTC milliseconds and",
        "log-probabilities nats.",
    ]
    for stage, files, schema, note in TABLES:
        lines += ["", f"## {stage}: {files}", "", note, "", "| column | type |", "|---|---|"]
        lines += [f"| `{field.name}` | {_arrow(field.type)} |" for field in schema]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return the page of the command line, as typer documents it."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="nextquill")
    lines = [
        "# Command line",
        "",
        "Look up a command and its options. Exit codes: 0 done; 2 the input is invalid (one line says what, where and",
        "how to fix it); 3 `promote` did not accept the candidate; 130 interrupted (the same command resumes);",
        "1 anything else. [Runs](runs.md) has more.",
    ]
    return "\n".join(lines) + "\n" + unescape(page).partition("\n")[2].rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "artifacts.md": artifacts,
    "commands.md": commands,
}


def _arrow(kind: pa.DataType) -> str:
    if isinstance(kind, pa.StructType):
        return f"struct of {', '.join(f'{kind[i].name} {_arrow(kind[i].type)}' for i in range(kind.num_fields))}"
    return f"list of {_arrow(kind.value_type)}" if isinstance(kind, pa.ListType) else str(kind)


def _sections(
    section: type[Section], prefix: str = "", inherited: bool = False
) -> Iterator[tuple[str, type[Section], bool]]:
    """Yield name, class and whether all settings are operational for each section below `section`."""
    for key, field in section.model_fields.items():
        if inner := section_of(field):
            operational = inherited or _operational(field)
            yield prefix + key, inner, operational
            yield from _sections(inner, f"{prefix}{key}.", operational)


def _operational(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("operational"))


def _row(key: str, field: FieldInfo, operational: bool) -> str:
    mark = " ○" if operational or _operational(field) else ""
    default = field.default
    shown = "[…]" if isinstance(default, tuple) and any(isinstance(part, Section) for part in default) else default
    return f"| `{key}`{mark} | `{_yaml(shown)}` | {_values(field)} | {description_of(field)} |"


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(field: FieldInfo) -> str:
    bounds = [
        f"{BOUNDS[type(mark)][0]} {getattr(mark, BOUNDS[type(mark)][1])}"
        for mark in field.metadata
        if type(mark) in BOUNDS
    ]
    return f"{_kind(field.annotation, field.metadata)} {', '.join(bounds)}".strip()


def _kind(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    if any(isinstance(mark, MethodNames) for mark in metadata):
        return "a name that `nextquill methods` lists"
    arguments = [part for part in get_args(annotation) if part is not Ellipsis]
    if annotation is None or annotation is type(None):
        return "null"
    if not arguments:
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return "{" + ", ".join(annotation.model_fields) + "}"
        return annotation.__name__ if isinstance(annotation, type) else f"`{annotation}`"
    if getattr(annotation, "__origin__", None) is tuple:
        return f"list of {_kind(arguments[0])}"
    return " or ".join(_kind(part) for part in arguments)


if __name__ == "__main__":
    main()
