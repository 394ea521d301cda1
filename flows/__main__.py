"""Entry point of the command line: `nextquill` or `python -m flows`.

Signal handlers are installed before the command line is imported, which takes a few tenths of a second.
"""

from __future__ import annotations

from flows.cli import interruption


def main() -> None:
    """Run a command; see `flows.cli.main.main`."""
    interruption.exit_quickly()
    interruption.run(_run)


def _run() -> int:
    from flows.cli.main import exit_code

    return exit_code()


if __name__ == "__main__":
    main()
