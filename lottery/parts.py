"""Parts of one's own, named ``module:function`` in params.yaml."""

import functools
import importlib
import inspect
import os
import re
import textwrap
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lottery import code
from lottery.errors import LotteryError

T = TypeVar("T")
PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
FOLDER = "mine"  # of the parts: a dependency of the stages that use them


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
    except (Exception, SystemExit) as error:
        (where, text), file = _told(error), code.source(module)
        where = where or (f"{os.path.relpath(file)}: " if file else "")
        raise LotteryError(f"params.yaml: {name}: {where}cannot be imported: {text}") from None
    if not inspect.isfunction(inspect.unwrap(found)):
        raise LotteryError(f"params.yaml: {name}: a {type(found).__name__}; accepted: a function")
    return found


def find(table: Mapping[str, T], name: str) -> T:
    """The part of that name: from the table, or imported. LotteryError where it cannot be."""
    return _imported(name) if is_own(name) else table[name]  # type: ignore[return-value]


def mistake(name: str, why: str | BaseException) -> LotteryError:
    """What is wrong with a part, or what it raised: one line with its name, its file and line."""
    written = inspect.unwrap(_imported(name)).__code__  # type: ignore[arg-type]
    where, text = _told(why) if isinstance(why, BaseException) else ("", why)
    where = where or _line(written.co_filename, written.co_firstlineno)
    return LotteryError(f"params.yaml: {name}: {where}{text}")


def _told(error: BaseException) -> tuple[str, str]:
    """Where in the user's code an error was raised, if anywhere there; what it says."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    text = str(error)
    if isinstance(error, SyntaxError):
        places, text = [(error.filename or "", error.lineno)], error.msg
    project, where = Path(__file__).parent, ""
    for path, line in ((Path(file), line) for file, line in places):
        if path.suffix == ".py" and not code.installed(path) and project not in path.parents:
            where = _line(path, line)
    return where, textwrap.shorten(f"{type(error).__name__}: {text}", 400)


def _line(path: str | Path, line: int | None) -> str:
    return f"{os.path.relpath(path)}, line {line}: "


def unseen(names: Iterable[str], stage: str, deps: Iterable[str]) -> Iterator[str]:
    """A line for each source of these parts, imported ones too, that a stage does not depend on."""
    watched = {Path(dep).resolve() for dep in deps if isinstance(dep, str)}
    for name in names:
        for module in code.read(module_of(name)):
            file = code.source(module)
            if code.is_ours(module) or file is None or watched & {file, *file.resolve().parents}:
                continue
            yield (
                f"{name}: {os.path.relpath(file)} is not among the deps of {stage} in dvc.yaml, so "
                f"`dvc repro` would not see its changes; move it into {FOLDER}/ (what is "
                "installed: import it there)"
            )
