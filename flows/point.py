"""One point of a sweep, in a process of its own: `python -m flows.point ORDER.yaml`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from prefect import tags

from flows.command import print_run_lines
from flows.pipeline import pipeline
from nextquill_core.config import parse_config
from nextquill_core.errors import UserError


def main() -> int:
    """Run the pipeline on the configuration in the file named on the command line, under the name that stands there."""
    order = yaml.safe_load(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    print_run_lines()
    try:
        with tags("sweep"):
            named = pipeline.with_options(flow_run_name=order["label"])
            named(parse_config(order["config"], where=order["label"]))
    except UserError as error:
        print(f"nextquill: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
