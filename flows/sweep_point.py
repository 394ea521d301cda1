"""One point of a sweep in a separate process: `python -m flows.sweep_point ORDER.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from prefect import tags

from flows.cli.runner import print_run_lines
from flows.pipeline import pipeline
from flows.results import Interrupted
from flows.server import outage
from nextquill_core.config import parse_config
from nextquill_core.errors import UserError


def main() -> int:
    """Run the pipeline on the configuration in the file that is named on the command line."""
    order = yaml.safe_load(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    print_run_lines()
    outage.watch()
    try:
        with tags("sweep"):
            pipeline(parse_config(order["config"], where=order["label"]).with_overridden(order["keys"]))
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    except Interrupted:
        return 130
    except Exception as error:
        outage.end_if_cause(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
