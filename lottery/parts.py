"""Parts of one's own: architectures, criteria, variants, named ``module:function`` in
params.yaml."""

import functools
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lottery import code
from lottery.errors import LotteryError

T = TypeVar("T")
PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def is_own(name: str) -> bool:
    """Whether a part is the user's, not one of this project."""
    return ":" in name


def module_of(name: str) -> str:
    """The module that a part of one's own is in; empty for one of this project."""
    return name.partition(":")[0] if is_own(name) else ""


def named(values: Any) -> list[str]:
    """The parts of one's own among parameters: nested dicts, lists and scalars."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list):
        return list(dict.fromkeys(name for value in values for name in named(value)))
    return [values] if isinstance(values, str) and re.fullmatch(PATTERN, values) else []


@functools.cache
def _imported(name: str) -> object:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise LotteryError(f"params.yaml: {name}: cannot be imported: {error}") from None
    if not callable(found):
        raise LotteryError(f"params.yaml: {name}: not a function")
    return found


def find(table: Mapping[str, T], name: str) -> T:
    """The part of that name: from the table, or imported. LotteryError where it cannot be."""
    return _imported(name) if is_own(name) else table[name]  # type: ignore[return-value]


def warn(names: Iterable[str], stage: str, deps: Iterable[str]) -> None:
    """Says on standard error which sources of one's own are not among the stage's ``deps``.

    Raises LotteryError where a part cannot be imported.
    """
    names = list(names)
    for name in names:
        _imported(name)
    for line in unseen(names, stage, deps):
        print(f"{stage}: {line}", file=sys.stderr)


def unseen(names: Iterable[str], stage: str, deps: Iterable[str]) -> Iterator[str]:
    """A line for each source of one's own that is not among a stage's ``deps``: the files that the
    parts are in, and the modules of the user's that they import.
    """
    watched = {Path(dep).resolve() for dep in deps}
    for name in names:
        for module in code.read(module_of(name)):
            file = code.source(module)
            if code.is_ours(module) or file is None or watched & {file, *file.resolve().parents}:
                continue
            yield (
                f"{name}: add {file} to the deps of {stage} in dvc.yaml: "
                "`dvc repro` does not see its changes"
            )
