"""The command line: `nextquill COMMAND`.

Libraries that take long to import are imported by the command that needs them, so `--help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import compare, interruption, plan, serve, server, write
from flows.cli import store as store_commands
from flows.cli.arguments import Commands
from flows.cli.options import (
    ConfigOption,
    ConfigsOption,
    Panel,
    SetOption,
    StoreOption,
    console,
    with_settings,
)
from flows.cli.pages import write_page
from flows.cli.runner import run_flow
from storage.errors import UserError
from storage.files import user_path
from storage.masked_output import mask_output

if TYPE_CHECKING:
    from nextquill_core.config import StageName
    from nextquill_core.pipeline.run import Run

app = typer.Typer(
    cls=Commands,
    name="nextquill",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DATA_SETS_OF_THE_PAPER = [
    Path("configs", name) for name in ("books.yaml", "movies_tv.yaml", "cds_vinyl.yaml", "topic_writing.yaml")
]
OWN_REVIEWS = "ingest.inputs=[{category: Mine, reviews: reviews.jsonl, items: items.jsonl}]"
PACKAGED_STUDIES = [Path("synthetic"), Path("real")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make the artifacts again even if they are up to date.")]


def main() -> None:
    """Run a command and exit with its code.

    Exit codes: 0 done; 2 invalid input, with one line; 1 any other failure; 3 a candidate that `promote` does not
    accept; 130 interrupted by a signal.
    """
    interruption.run(exit_code)


def exit_code() -> int:
    """Run a command and return its exit code."""
    mask_output()
    try:
        typer.main.get_command(app)()  # `app()` would install Typer's excepthook
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        where = str(error.filename or "a file")
        refused = UserError(f"no access ({error.strerror})", where, "change its permissions, or use another store")
        print(f"nextquill: {refused}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"nextquill {version('nextquill')}")
        raise typer.Exit


@app.callback()
def nextquill(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Personalised language models from review histories: ingest, score, train, evaluate.

    `nextquill COMMAND --help` describes a command. The YAML file of a run is given with --config or as an argument.
    """


@app.command("run", rich_help_panel=Panel.pipeline)
@with_settings
def _run(config: ConfigOption, settings: Any, given: Any = (), force: ForceOption = False) -> None:
    """Run the whole pipeline; artifacts that are up to date are reused."""
    from flows.cli import announce
    from flows.cli.narration import TasteNarrator

    for line in announce.unwritten_lines("run", settings):
        print(line, file=sys.stderr, flush=True)
    current = _opened(settings)
    if force or not _all_fresh(current):
        announce.require_sources(current, announce.STAGES, force=force)
        about = announce.plan_lines("run", str(config), current, announce.STAGES, force=force)
        run_flow("pipeline", settings, about=about, narrator=TasteNarrator(), force=force)
    _show_results(settings)
    _show_next_commands(settings, given)


def _stage_command(name: StageName, help_text: str) -> None:
    @app.command(name, help=help_text, rich_help_panel=Panel.pipeline)
    @with_settings
    def stage(config: ConfigOption, settings: Any, force: ForceOption = False) -> None:
        from flows.cli import announce

        current = _opened(settings)
        announce.require_sources(current, [name], force=force)
        about = announce.plan_lines(name, str(config), current, [name], force=force)
        run_flow(name, settings, about=about, force=force)
        if name == "ingest":
            _show_account(settings)
        if name == "evaluate":
            _show_results(settings)


_stage_command("ingest", "Read raw reviews and write user sequences.")
_stage_command("model", "Make the base model: train the offline one (`tiny`), or convert one from GGUF.")
_stage_command("score", "Compute the causal effect and the preference weight of every token.")
_stage_command("train", "Train the adapters with DeepSpeed.")
_stage_command("evaluate", "Generate reviews, measure them, and write the report.")


@app.command("reproduce", rich_help_panel=Panel.pipeline)
@with_settings
def _reproduce(
    config: ConfigsOption = DATA_SETS_OF_THE_PAPER, settings: Any = None, force: ForceOption = False
) -> None:
    """Run the paper's whole table and print our numbers beside the published ones.

    Name one configuration per category with --config.
    """
    from flows.cli import announce
    from flows.cli.status import reproduced_tables
    from flows.runs import open_run
    from nextquill_core.studies.reproduce import TABLES, reproduction_step, whole_table

    about: list[str] = []
    for file, one in zip(config, settings, strict=True):
        current = _opened(whole_table(one))
        announce.require_sources(current, announce.STAGES, force=force)
        about += announce.plan_lines("reproduce", str(file), current, announce.STAGES, force=force)
    run_flow("reproduce", settings, about=about, force=force)
    runs = [open_run(whole_table(one), fetch=False) for one in settings]
    found = runs[0].artifact(reproduction_step(runs))
    terminal = console()
    for shown in reproduced_tables(found, width=terminal.width):
        terminal.print(shown)
    print(f"tables: {found.folder / TABLES}")


@app.command("sweep", rich_help_panel=Panel.pipeline)
@with_settings
def _sweep(
    grid: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE…", help="Values of a key; they are YAML.")],
    config: ConfigOption,
    settings: Any,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, help="Points to run at a time; as many as accelerators allow by default."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make the table again; points are reused.")] = False,
) -> None:
    """Run the pipeline for all combinations of settings, and compare them on the val split.

    The test split is not used.
    """
    from flows.cli import announce
    from flows.cli.status import sweep_results
    from flows.runs import open_run
    from nextquill_core.pipeline.sweep_points import open_points
    from nextquill_core.studies.sweep import fresh_sweep, missing, parse_grid

    values = parse_grid(grid)
    with announce.notice_if_slow():
        points = open_points(settings, values, open_run)
    about = [f"nextquill sweep: {config}, {len(points)} points, all measured on val; the test split is not used"]
    for point in points:
        announce.require_sources(point.run, announce.STAGES, force=False)
        about.append(f"  {point.label}: {'will be made' if missing(point.run) else 'up to date, is reused'}")
    if force or fresh_sweep(points) is None:
        run_flow("sweep", settings, about=about, grid=values, parallel=parallel, force=force)
    done = fresh_sweep(points)
    if done is not None:
        terminal = console()
        for table in sweep_results(done, width=terminal.width):
            terminal.print(table)
        print(f"sweep: {done.folder / 'sweep.html'}")


@app.command("study", rich_help_panel=Panel.pipeline)
def _study(
    config: Annotated[
        list[Path],
        typer.Option("--config", "-c", help="YAML file of a study, or the name of a packaged one; repeat for several."),
    ] = PACKAGED_STUDIES,
    question: Annotated[
        list[int] | None, typer.Option("--question", min=1, max=5, help="Answer this question alone; repeatable.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="List the cells, what is missing and its cost; run none.")
    ] = False,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write the page from what the store has; run no cell.")
    ] = False,
    numbers: Annotated[
        Path | None, typer.Option("--from", help="Write the page from this results.json; no store is read.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="Folder for RESULTS.md, results.json and images/; studies of other names in its results.json stay.",
        ),
    ] = None,
    overrides: SetOption = None,
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write the page again; cells are reused.")] = False,
) -> None:
    """Answer five questions about the method by many runs, and write the results as one page.

    Settings are chosen on val; the test split is read afterwards.
    """
    from flows.cli import announce
    from flows.runs import open_run
    from flows.server.settings import server_settings
    from nextquill_core.studies.study import cells, collect
    from nextquill_core.studies.study.spec import load_study

    if numbers is not None:
        _written(collect.read_document(numbers), output or numbers.parent)
        return
    if output is not None:
        collect.stored_studies(output)  # a damaged file is reported before hours of work
    specs = [load_study(file, overrides or [], store) for file in config]
    studies = [cells.Study(spec, open_run, question or cells.QUESTIONS) for spec in specs]
    with announce.notice_if_slow():
        cells.require_one_store(studies)
        planned = [
            cell
            for one in studies
            for cell in (*one.effect_cells(), *one.val_cells(), *one.test_cells(collect.choices_of(one)))
        ]
        rows = list(cells.plan_rows(planned))
    waiting = any(row.missing for row in rows)
    about = [f"nextquill study: {', '.join(map(str, config))}, {len(rows)} cells; settings are chosen on val"]
    if plan:
        print("\n".join([*about, *cells.plan_lines(rows)]))
        return
    if write_only:
        found = collect.collect(studies, force=force).artifact
    else:
        for cell in planned:
            announce.require_sources(cell.run, announce.STAGES, force=False)
        if waiting or force or server_settings().url:
            about += [line for line in cells.plan_lines(rows) if "nothing to make" not in line]
            run_flow("study", specs, about=about, questions=question or None, force=force)
        found = collect.collect(studies).artifact
    document = collect.read_document(found.folder / collect.RESULTS)
    if output is not None:
        _written(collect.beside(document, collect.stored_studies(output)), output)
    else:
        print(f"results: {found.folder / collect.PAGE}")


def _written(document: dict[str, Any], folder: Path) -> None:
    from nextquill_core.studies.study import collect

    for path in collect.write_files(document, folder):
        print(path)


@app.command("status", rich_help_panel=Panel.look)
@with_settings
def _status(
    config: ConfigOption,
    settings: Any,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, for scripts.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every artifact in the store instead.")] = False,
) -> None:
    """Show for each stage whether its artifact is up to date (fresh), stale and why, missing, running or failed."""
    if everything:
        store_commands.list_store(settings, as_json=as_json)
        return
    from flows.cli.status import status_lines, status_rows
    from nextquill_core.model.packaged import located_model
    from nextquill_core.model.template_choice import choose_template

    rows = status_rows(settings)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        terminal = console()
        for line in status_lines(rows, terminal.width):
            terminal.print(line, soft_wrap=True, highlight=False)
        base = located_model(settings.model)
        choice = choose_template(settings.prompt.template, base.name_or_path, base.revision)
        print(choice, file=sys.stderr)  # the standard output has one row per stage


@app.command("path", rich_help_panel=Panel.look)
@with_settings
def _path(
    stage: Annotated[
        str, typer.Argument(help="ingest, score, train, train:METHOD, evaluate, accepted, or another stage.")
    ],
    config: ConfigOption,
    settings: Any,
) -> None:
    """Print the folder of a stage's artifact, and nothing else."""
    from flows.runs import open_run

    current = open_run(settings, fetch=False)
    what, _, name = stage.partition(":")
    if what == "accepted":
        from nextquill_core.registry.promote import accepted

        print(accepted(current, name or settings.train.method).folder)
        return
    step = current.plan.stage(stage)
    if step is None:
        names = ", ".join(known.name for known in current.plan.stages)
        raise UserError(f"no stage {stage!r} in this config", str(config), f"use one of {names}")
    print(current.artifact(step).folder)


@app.command("report", rich_help_panel=Panel.look)
@with_settings
def _report(
    config: ConfigOption,
    settings: Any,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Measure and draw again first, from stored texts; shows a later sweep.")
    ] = False,
) -> None:
    """Print the path of the report."""
    from flows.runs import open_run

    current = open_run(settings, fetch=redraw)
    if redraw:
        current.make(current.plan.evaluate, force=True)
    print(current.artifact(current.plan.evaluate).folder / "report.html")


@app.command("explain", rich_help_panel=Panel.look)
@with_settings
def _explain(
    user: Annotated[str, typer.Option("--user", help="Id of the user.")],
    config: ConfigOption,
    settings: Any,
    item: Annotated[
        str | None, typer.Option("--item", help="Id or title of an item; by default, all measured reviews of the user.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", help="File for the page.")] = Path("explained.html"),
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show one person: past reviews, the true review coloured by effect, and each method's text."""
    from flows.runs import open_run
    from nextquill_core.analysis.example_view import example_html, example_terminal
    from nextquill_core.pipeline.report.example import find_examples, gather

    current = open_run(settings, fetch=False)
    explained = list(gather(current, find_examples(current, user, item)))
    console().print(example_terminal(explained))
    write_page(output, example_html(explained), show=show)


plan.register(app)
compare.register(app)
write.register(app)
serve.register(app)
store_commands.register(app)
server.register(app)


@app.command("sample", rich_help_panel=Panel.data)
def _sample(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    users: Annotated[int, typer.Option(min=1, help="Number of regular users.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same bytes.")] = 42,
    world: Annotated[str, typer.Option(help="How users write: plain, or mixed, where tastes overlap.")] = "plain",
) -> None:
    """Write a synthetic category in the Amazon 2023 layout, with its ground truth."""
    from nextquill_core.synthetic.sample import write_sample

    with user_path(folder, "name a folder that you can write to"):
        done = write_sample(folder, users=users, seed=seed, world=world)
    print(
        f"{done.folder}: {done.review_rows:,} review rows of {done.users:,} regular and {done.cold_users:,} cold "
        f"users, {done.item_rows:,} item rows; {done.folder / 'truth'} says which words follow from which user's taste"
    )


@app.command("sources", rich_help_panel=Panel.data)
def _sources(
    check: Annotated[bool, typer.Option("--check", help="Check the config's source on its files.")] = False,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of the run, for --check.")] = None,
    overrides: SetOption = None,
) -> None:
    """List the kinds of raw data that `ingest.source` can name; with --check, check that one keeps its contract."""
    if check:
        from nextquill_core.config.packaged import read_config

        if config is None:
            raise UserError("--check needs files to read", "nextquill sources", "name a run's file with --config")
        _check_source(read_config(str(config), overrides or []).ingest)
        return
    from nextquill_core.ingest.sources import SOURCES

    _list_plugins(*SOURCES.listed(lambda source: source.summary))


def _check_source(ingest: Any) -> None:
    from nextquill_core.ingest.conformance import check_source
    from nextquill_core.ingest.sources import source

    errors = 0
    for raw in ingest.inputs:
        found = check_source(source(ingest.source, ingest.options), raw)
        errors += sum(finding.level == "error" for finding in found)
        for finding in found:
            print(finding)
        if not found:
            print(f"{raw.category}: {ingest.source} keeps its contract")
    if errors:
        count = f"{errors} error{'s' if errors > 1 else ''}"
        remedy = "fix what is named above; docs/how-to/sources.md has the rules"
        raise UserError(count, f"source {ingest.source}", remedy)


@app.command("methods", rich_help_panel=Panel.data)
def _methods() -> None:
    """List the methods that `train.method` and `evaluate.methods` can name."""
    from nextquill_core.methods.registry import METHODS

    _list_plugins(*METHODS.listed(lambda method: method.summary))


@app.command("models", rich_help_panel=Panel.data)
def _models() -> None:
    """List what `model.name_or_path` can name, and the encoders that `evaluate.retrieval` can name."""
    from nextquill_core.model.packaged import encoder_names, model_names

    print("model.name_or_path")
    _list(model_names(), indent=2)
    print("evaluate.retrieval.encoder, evaluate.retrieval.bertscore, evaluate.retrieval.author")
    _list(encoder_names(), indent=2)


@app.command("metrics", rich_help_panel=Panel.data)
def metrics() -> None:
    """List the metrics that an evaluation measures, and those that `evaluate.metrics` can add."""
    from nextquill_core.evaluation.metrics import METRICS

    _list_plugins(*METRICS.listed(lambda metric: metric.summary))


def _opened(settings: Any) -> Run:
    """Return the run of a configuration; its input is checked before Prefect starts."""
    from flows.cli import announce
    from flows.runs import open_run

    with announce.notice_if_slow():
        return open_run(settings)


def _all_fresh(current: Run) -> bool:
    """Return whether everything is up to date and no Prefect server is set, and if so print what is reused."""
    from flows.server.settings import server_settings

    if current.privacy.forget or server_settings().url:
        return False  # the store must be searched for data of forgotten users, or the server shows the run
    standing = {step.name: current.freshness(step) for step in current.plan.stages}
    if any(fresh.state != "fresh" for fresh in standing.values()):
        return False
    print(current.template, file=sys.stderr)
    for name, fresh in standing.items():
        print(f"{name}: reused, fresh at {fresh.artifact and fresh.artifact.location}", file=sys.stderr)
    return True


def _show_account(settings: Any) -> None:
    from flows.cli.status import account_table
    from flows.runs import open_run

    current = open_run(settings, fetch=False)
    console().print(account_table(current.artifact(current.plan.ingest)))


def _show_results(settings: Any) -> None:
    from flows.cli.status import results_table
    from flows.runs import open_run

    current = open_run(settings, fetch=False)
    evaluation = current.artifact(current.plan.evaluate)
    terminal = console()
    for table in results_table(evaluation, width=terminal.width):
        terminal.print(table)
        terminal.print()
    if settings.model.name_or_path == "tiny":
        print("The base model is small and was trained here: these numbers say nothing about large models.")
    report = evaluation.folder / "report.html"
    # A terminal that knows links opens the report on a click; the path is never folded.
    terminal.print(
        f"report: {report}", style=f"link {report.resolve().as_uri()}", soft_wrap=True, highlight=False, markup=False
    )


def _show_next_commands(settings: Any, given: Sequence[str]) -> None:
    """Print three commands for what people do next: one person, another setting, other reviews."""
    from flows.runs import open_run
    from nextquill_core.analysis.token_colours import terminal_safe
    from nextquill_core.pipeline.truths import shown_user

    user = terminal_safe(shown_user(open_run(settings, fetch=False)))
    print("\nNext:")
    synthetic = any(raw.synthetic for raw in settings.ingest.inputs)
    for what, words in (
        ("one person, token by token", ["explain", *given, "--user", user]),
        ("what another setting would make again", ["status", *given, "--set", "weights.delta=0.1"]),
        ("the same with your own reviews", ["run", "--config", "small", "--set", OWN_REVIEWS])
        if synthetic
        else ("accept this adapter, if it is good enough", ["promote", *given]),
    ):
        print(f"  # {what}\n  nextquill {shlex.join(words)}")


def _list_plugins(rows: dict[str, str], broken: list[str]) -> None:
    _list(rows)
    for line in broken:
        print(f"nextquill: {line}", file=sys.stderr)


def _list(rows: dict[str, str], indent: int = 0) -> None:
    width = max(map(len, rows))
    for name, summary in rows.items():
        print(f"{'':<{indent}}{name:<{width}}  {summary}")
