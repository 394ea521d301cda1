"""Check that docstrings and prose are in plain English: `python scripts/lint_english.py FILE_OR_FOLDER…`.

Ruff checks that a public name has a docstring and how it is laid out. This script checks what no linter has:

- the first sentence of a docstring begins with a capital letter and ends;
- a public function with three or more parameters describes each of them below `Args:` (not in tests);
- words of the private dialect that this code base once had do not come back, in Python files and in Markdown;
- no line is a place that its author meant to fill in later.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FEW = 2
"""A function with more parameters than this has `Args:`."""
SAY = {
    r"[a]new": "again",
    r"[m]end(s|ed|ing)?": "fix",
    r"([w]hoever|[s]omebody|[n]obody)": "user, operator, process, or no one in particular",
    r"(is|are|was|were|be|been) told": "receives, is given, is passed",
    r"tall(y|ies)": "row counts, progress",
    r"[g]lances?": "cached view",
    r"[u]nheard": "unknown",
    r"of (its|their) own": "own, separate",
    r"go(es)? on": "resume, continue",
    r"(can|cannot) be had": "is available, is missing",
    r"[f]or good": "forever",
    r"keeps? house": "collect garbage",
}
"""Patterns of words that do not come back, and what to say. Brackets keep a pattern from matching itself."""
DIALECT = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in SAY), re.IGNORECASE)
PLACEHOLDER = re.compile(r"\s*[A-Z]{4,}\s*|.*\b(TO[D]O|FIX[M]E|T[B]D|XX[X])\b.*")

DATA = ("nextquill_core/synthetic/lexicon.py",)
"""Files whose sentences are data: a change would change what is made from them."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def main(places: list[str]) -> int:
    """Print a line for each fault and return 1 if there is one.

    Args:
        places: Files and folders; of folders, all Python and Markdown files below them.
    """
    faults = [fault for place in places for path in _files(Path(place)) for fault in check(path)]
    print("".join(f"{fault}\n" for fault in faults), end="")
    return 1 if faults else 0


def check(path: Path) -> Iterator[str]:
    """Yield the faults of one file as `file:line: what is wrong`."""
    if not path.is_file():
        yield f"{path}: there is no such file or folder"
        return
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate([] if path.as_posix().endswith(DATA) else text.splitlines(), 1):
        for word in DIALECT.finditer(line):
            better = next(say for pattern, say in SAY.items() if re.fullmatch(pattern, word[0], re.IGNORECASE))
            yield f"{path}:{number}: say {better!r} instead of {word[0]!r}"
        if PLACEHOLDER.fullmatch(line):
            yield f"{path}:{number}: fill in {line.strip()!r}"
    if path.suffix == ".py":
        tests = "tests" in path.parts
        yield from (f"{path}:{fault}" for fault in _docstrings(ast.parse(text), with_arguments=not tests))


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
    else:
        yield from sorted(path for path in place.rglob("*") if path.suffix in {".py", ".md"})


def _docstrings(module: ast.Module, *, with_arguments: bool) -> Iterator[str]:
    yield from (f"1: {fault}" for fault in _first_sentence(ast.get_docstring(module) or ""))
    for definition in _public(module):
        docstring = ast.get_docstring(definition)
        if docstring is None:
            continue  # ruff's D1 rules name those that need one
        where = f"{definition.lineno}: {definition.name}"
        yield from (f"{where}: {fault}" for fault in _first_sentence(docstring))
        if with_arguments and not isinstance(definition, ast.ClassDef):
            yield from (f"{where}: {fault}" for fault in _arguments(definition, docstring))


def _public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _public(child)


def _first_sentence(docstring: str) -> Iterator[str]:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    if paragraph and not re.search(r"[.:?]$", paragraph):
        yield "the first sentence of the docstring has no end"
    if paragraph and re.match(r"[a-z]", paragraph):
        yield "the docstring begins with a small letter"


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef, docstring: str) -> Iterator[str]:
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    names = [one.arg for one in every if one.arg not in ("self", "cls") and not one.arg.startswith("_")]
    described = set(re.findall(r"^\s+\*{0,2}(\w+):", docstring.partition("Args:")[2], re.MULTILINE))
    if len(names) > FEW and (missing := [name for name in names if name not in described]):
        yield f"`Args:` does not describe {', '.join(missing)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
