"""Things with a name that other packages can add by an entry point: sources, weight policies."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from nextquill_core.errors import UserError, first_line

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """All things of one kind.

    Attributes:
        kind: What one is called, such as `source`.
        group: The entry point group, such as `nextquill.sources`.
        setting: The config key that names one.
        built_in: Those that come with NextQuill; nobody can replace them.
        fault: What is raised where one cannot be had.
    """

    kind: str
    group: str
    setting: str
    built_in: Mapping[str, T]
    fault: type[UserError] = UserError

    def added(self) -> dict[str, EntryPoint]:
        """The entry points of other packages, by name; nothing of theirs is imported yet."""
        return {point.name: point for point in entry_points(group=self.group) if point.name not in self.built_in}

    def load(self, name: str) -> T:
        """The one called `name`; what another package gives is not checked.

        Raises:
            UserError: There is none (the nearest name is suggested), or its package cannot be loaded.
        """
        if name in self.built_in:
            return self.built_in[name]
        others = self.added()
        if name not in others:
            raise self.fault(f"unknown {self.kind} `{name}`", self.setting, suggestion(name, [*self.built_in, *others]))
        try:
            found: T = others[name].load()
        except Exception as error:  # whatever another package's import may raise
            what = f"{self.kind} `{name}` cannot be loaded: {first_line(error)}"
            raise self.fault(what, others[name].value, "mend its package") from None
        return found


def suggestion(name: str, names: Iterable[str]) -> str:
    """What to do about a name that nobody has: the nearest one, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean `{near[0]}`?" if near else f"one of: {', '.join(names)}"
