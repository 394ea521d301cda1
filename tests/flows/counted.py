"""The command line, with a last line on stderr that says how often it planned and looked up the state of each step."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from flows.cli.main import exit_code
from nextquill_core.pipeline import FreshnessCache, Step, freshness, make_plan
from nextquill_core.pipeline.run import Run


def main() -> int:
    """Run the command that the command line names, and print the counts."""
    plans, lookups = 0, Counter[str]()

    def counted_plan(*arguments: Any, **options: Any) -> Any:
        nonlocal plans
        plans += 1
        return make_plan(*arguments, **options)

    def counted_lookup(store: Any, step: Step) -> Any:
        lookups[step.name] += 1
        return freshness(store, step)

    Run.__init__.__globals__["make_plan"] = counted_plan
    for user in (Run.freshness, FreshnessCache.__call__):
        user.__globals__["freshness"] = counted_lookup
    code = exit_code()
    print(json.dumps({"plans": plans, "lookups": lookups}), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
