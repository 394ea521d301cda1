"""The command line. Heavy libraries are imported by the command that needs them, so `--help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import alerts, interruption, up, verify
from flows.cli import store as keeping
from flows.cli.arguments import Commands
from flows.cli.common import ConfigOption, PresetOption, SetOption, StoreOption
from flows.cli.common import console as _console
from flows.cli.common import read_settings as _settings
from flows.cli.common import run_flow as _run_flow
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
PAPERS_CATEGORIES = [Path("configs", name) for name in ("books.yaml", "movies_tv.yaml", "cds_vinyl.yaml")]
ForceOption = Annotated[bool, typer.Option("--force", help="Make it anew even if it is fresh.")]


def main() -> None:
    """Run a command: exit 0 when done, 2 with one line when the user's input is wrong, 1 on anything else; 3 is a
    candidate that `promote` does not accept, 130 a command that a signal ended."""
    interruption.run(exit_code)


def exit_code() -> int:
    """Run a command and return its exit code."""
    mask_output()
    try:
        typer.main.get_command(app)()  # `app()` would install an excepthook of Typer's own
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:
        where = str(error.filename or "a file")
        refused = UserError(f"no access ({error.strerror})", where, "allow yourself to use it, or name another store")
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Personalised language models from review histories: ingest, score, train, evaluate."""


@app.command()
def run(
    config: ConfigOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
    force: ForceOption = False,
) -> None:
    """Run the whole pipeline; what is fresh is reused."""
    from flows.cli import announce

    settings = _settings(config, overrides, store, preset)
    current = _opened(settings)
    if force or not _all_fresh(current):
        announce.require_sources(current, announce.STAGES, force=force)
        about = announce.plan_lines("run", str(config), current, announce.STAGES, force=force)
        _run_flow("pipeline", settings, about=about, force=force)
    _show_results(settings)


def _stage_command(name: StageName, help_text: str) -> None:
    @app.command(name, help=help_text)
    def stage(
        config: ConfigOption,
        overrides: SetOption = None,
        preset: PresetOption = None,
        store: StoreOption = None,
        force: ForceOption = False,
    ) -> None:
        from flows.cli import announce

        settings = _settings(config, overrides, store, preset)
        current = _opened(settings)
        announce.require_sources(current, [name], force=force)
        about = announce.plan_lines(name, str(config), current, [name], force=force)
        _run_flow(name, settings, about=about, force=force)
        if name == "ingest":
            _show_account(settings)
        if name == "evaluate":
            _show_results(settings)


_stage_command("ingest", "Raw reviews into user sequences.")
_stage_command("model", "Train the offline base model (`model.name_or_path: tiny`).")
_stage_command("score", "Causal effects of every token, and preference weights.")
_stage_command("train", "Train the adapters under DeepSpeed.")
_stage_command("evaluate", "Generate, measure, report.")


@app.command()
def reproduce(
    configs: Annotated[
        list[Path], typer.Option("--config", "-c", help="A run's YAML file, or as an argument; one for each category.")
    ] = PAPERS_CATEGORIES,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
    force: ForceOption = False,
) -> None:
    """Run the paper's whole table and print our numbers beside the published ones."""
    from flows.cli import announce
    from flows.cli.status import reproduced_tables
    from flows.runs import open_run
    from nextquill_core.studies.reproduce import TABLES, reproduction_step, whole_table

    settings = [_settings(config, overrides, store, preset) for config in configs]
    about: list[str] = []
    for config, one in zip(configs, settings, strict=True):
        current = _opened(whole_table(one))
        announce.require_sources(current, announce.STAGES, force=force)
        about += announce.plan_lines("reproduce", str(config), current, announce.STAGES, force=force)
    _run_flow("reproduce", settings, about=about, force=force)
    runs = [open_run(whole_table(one), fetch=False) for one in settings]
    found = runs[0].artifact(reproduction_step(runs))
    console = _console()
    for shown in reproduced_tables(found, width=console.width):
        console.print(shown)
    print(f"tables: {found.folder / TABLES}")


@app.command()
def status(
    config: ConfigOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array, for scripts.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every artifact in the store instead.")] = False,
) -> None:
    """Say for each stage whether its artifact is fresh, stale (and why), missing, running, failed or interrupted."""
    settings = _settings(config, overrides, store, preset)
    if everything:
        keeping.list_store(settings, as_json=as_json)
        return
    from flows.cli.status import status_lines, status_rows
    from nextquill_core.model.template_choice import choose_template

    rows = status_rows(settings)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        console = _console()
        for line in status_lines(rows, console.width):
            console.print(line, soft_wrap=True, highlight=False)
        choice = choose_template(settings.prompt.template, settings.model.name_or_path, settings.model.revision)
        print(choice, file=sys.stderr)  # the other output is a row a stage


@app.command()
def path(
    stage: Annotated[str, typer.Argument(help="ingest, score, train, train:METHOD, evaluate, accepted, …")],
    config: ConfigOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
) -> None:
    """Print the folder of a stage's artifact, and nothing else."""
    from flows.runs import open_run

    current = open_run(_settings(config, overrides, store, preset), fetch=False)
    if stage.partition(":")[0] == "accepted":
        print(keeping.accepted_folder(current, stage.partition(":")[2]))
        return
    step = current.plan.stage(stage)
    if step is None:
        names = ", ".join(known.name for known in current.plan.stages)
        raise UserError(f"no stage {stage!r} in this config", str(config), f"it has {names}")
    print(current.artifact(step).folder)


@app.command()
def report(
    config: ConfigOption, overrides: SetOption = None, preset: PresetOption = None, store: StoreOption = None
) -> None:
    """Print the path of the report."""
    from flows.runs import open_run

    current = open_run(_settings(config, overrides, store, preset), fetch=False)
    print(current.artifact(current.plan.evaluate).folder / "report.html")


@app.command()
def export(
    config: ConfigOption,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that does not exist yet.")],
    method: Annotated[str | None, typer.Option("--method", help="Whose adapter; train.method's by default.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Write the whole model, the adapter merged into it.")] = False,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
) -> None:
    """Write a trained adapter, or the model it makes, with tokenizer and model card, to a folder of its own."""
    from flows.runs import open_run
    from nextquill_core.registry.export import export as write

    current = open_run(_settings(config, overrides, store, preset), fetch=False)
    write(current, method or current.config.train.method, to, merge=merge)
    print(to)


@app.command()
def sweep(
    grid: Annotated[list[str], typer.Argument(metavar="KEY=VALUE,VALUE…", help="All combinations; YAML values.")],
    config: ConfigOption,
    overrides: SetOption = None,
    preset: PresetOption = None,
    store: StoreOption = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Points at a time; by default what the accelerators allow.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make the table anew; points are not.")] = False,
) -> None:
    """Run the pipeline at every point of a grid and compare them on the val split; the test split is not looked at."""
    from flows.cli import announce
    from flows.cli.status import sweep_results
    from flows.runs import open_run
    from nextquill_core.studies.sweep import fresh_sweep, missing, open_points, parse_grid

    settings, values = _settings(config, overrides, store, preset), parse_grid(grid)
    with announce.said_if_slow():
        points = open_points(settings, values, open_run)
    about = [f"nextquill sweep: {config}, {len(points)} points, all measured on val; test is not looked at"]
    for point in points:
        announce.require_sources(point.run, announce.STAGES, force=False)
        about.append(f"  {point.label}: {'will be made' if missing(point.run) else 'up to date, is reused'}")
    if force or fresh_sweep(points) is None:
        _run_flow("sweep", settings, about=about, grid=values, parallel=parallel, force=force)
    done = fresh_sweep(points)
    if done is not None:
        console = _console()
        for table in sweep_results(done, width=console.width):
            console.print(table)
        print(f"sweep: {done.folder / 'sweep.html'}")


keeping.register(app)
alerts.register(app)
up.register(app)
verify.register(app)


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    users: Annotated[int, typer.Option(min=1, help="Regular users.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 42,
) -> None:
    """Write a synthetic category in the Amazon 2023 layout, with its ground truth."""
    from nextquill_core.synthetic.sample import write_sample

    with user_path(folder, "name a folder that you can write to"):
        done = write_sample(folder, users=users, seed=seed)
    print(
        f"{done.folder}: {done.review_rows:,} review rows of {done.users:,} regular and {done.cold_users:,} cold "
        f"users, {done.item_rows:,} item rows; {done.folder / 'truth'} says which words whose taste drove"
    )


@app.command()
def sources(
    check: Annotated[bool, typer.Option("--check", help="Try the config's source out on its files.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The run's YAML file, for --check, or as an argument.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """List the kinds of raw data that `ingest.source` can name, or say whether one keeps its contract."""
    if check:
        if config is None:
            raise UserError("--check needs files to read", "nextquill sources", "name a run's file with --config")
        _check_source(_settings(config, overrides, None).ingest)
        return
    from nextquill_core.ingest.sources import BUILT_IN, added, load

    rows, broken = {name: source.summary for name, source in BUILT_IN.items()}, []
    for name, point in added().items():
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"
        try:
            rows[name] = f"{load(name).summary} [{package}]"
        except UserError as error:
            broken.append(f"{error} [{package}]")
        except AttributeError:
            broken.append(f"source `{name}` has no summary; give its class one [{package}]")
    _list(rows)
    for line in broken:
        print(f"nextquill: {line}", file=sys.stderr)


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


@app.command()
def methods() -> None:
    """List the methods that `train.method` and `evaluate.methods` can name."""
    from nextquill_core.methods.registry import METHODS

    _list({name: method.summary for name, method in METHODS.items()})


def _opened(settings: Any) -> Run:
    """The run of a configuration, its input checked before Prefect starts."""
    from flows.cli import announce
    from flows.runs import open_run

    return announce.opened(open_run, settings)


def _all_fresh(current: Run) -> bool:
    """Whether nothing is left to do and no Prefect server is set; then none needs to be started to say so."""
    from flows.server.settings import server_settings
    from nextquill_core.pipeline import freshness
    from storage.garbage import Glance

    if current.privacy.forget or server_settings().url:
        return False  # what others left in the store has to be looked through, or a server is to show the run
    store = Glance(current.store)
    standing = {step.name: freshness(store, step) for step in current.plan.stages}
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
    _console().print(account_table(current.artifact(current.plan.ingest)))


def _show_results(settings: Any) -> None:
    from flows.cli.status import results_table
    from flows.runs import open_run

    current = open_run(settings, fetch=False)
    evaluation = current.artifact(current.plan.evaluate)
    console = _console()
    for table in results_table(evaluation, width=console.width):
        console.print(table)
    print(f"report: {evaluation.folder / 'report.html'}")


def _list(rows: dict[str, str]) -> None:
    width = max(map(len, rows))
    for name, summary in rows.items():
        print(f"{name:<{width}}  {summary}")


if __name__ == "__main__":
    main()
