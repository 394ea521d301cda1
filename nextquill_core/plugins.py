"""Registries of named things that other packages can extend: sources, methods, metrics, weight policies.

A package adds one by an entry point, `NAME = "package.module:object"`, of the registry's group.
"""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from nextquill_core.errors import UserError, first_line

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Plugins(Mapping[str, T]):
    """All things of one kind by name: the built-in ones first, then those of other packages, imported when asked for.

    Attributes:
        kind: What one is called, such as `source`.
        group: The entry point group, such as `nextquill.sources`.
        setting: The config key that names one.
        built_in: Those that come with NextQuill; another package cannot replace them.
        fault: The error raised where one is unknown or cannot be loaded.
        check: Says what is wrong with the object that another package gives under a name; "" if nothing is.
    """

    kind: str
    group: str
    setting: str
    built_in: Mapping[str, T]
    fault: type[UserError] = UserError
    check: Callable[[str, Any], str] = lambda *_: ""

    def added(self) -> dict[str, EntryPoint]:
        """Return the entry points of other packages by name, without importing them."""
        found = _entry_points(self.group, tuple(sys.path))
        return {name: points[0] for name, points in found.items() if name not in self.built_in}

    def load(self, name: str) -> T:
        """Return the one called `name`.

        Raises:
            UserError: There is none (the nearest name is suggested), several packages add it, or its package cannot be
                loaded.
        """
        if name in self.built_in:
            return self.built_in[name]
        others = self.added()
        if name not in others:
            raise self.fault(f"unknown {self.kind} `{name}`", self.setting, suggestion(name, [*self.built_in, *others]))
        if len(several := _entry_points(self.group, tuple(sys.path))[name]) > 1:
            what = f"several packages add a {self.kind} `{name}`: {' and '.join(map(_package, several))}"
            raise self.fault(what, self.setting, "uninstall all of them but one")
        try:
            found: T = others[name].load()
        except Exception as error:  # another package's import may raise anything
            what = f"{self.kind} `{name}` cannot be loaded: {first_line(error)}"
            raise self.fault(what, others[name].value, "fix or reinstall its package") from None
        if wrong := self.check(name, found):
            raise self.fault(f"{self.kind} `{name}` {wrong}", others[name].value, "fix or reinstall its package")
        return found

    def __getitem__(self, name: str) -> T:
        return self.load(name)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self.added()

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from self.added()

    def __len__(self) -> int:
        return len(self.built_in) + len(self.added())

    def listed(self, summary: Callable[[T], str]) -> tuple[dict[str, str], list[str]]:
        """Return a summary of each by name, and one line on each that cannot be loaded.

        Args:
            summary: What to say of one.
        """
        rows, broken = {name: summary(one) for name, one in self.built_in.items()}, []
        for name, point in self.added().items():
            try:
                rows[name] = f"{summary(self.load(name))} [{_package(point)}]"
            except UserError as error:
                broken.append(f"{error} [{_package(point)}]")
            except AttributeError:
                broken.append(f"{self.kind} `{name}` has no summary; give it one [{_package(point)}]")
        return rows, broken


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name, usually one each.

    Reading those of all packages takes a while, so they are read once for each `sys.path`.
    """
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return what to do about an unknown name: the nearest known one, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(names)}"
