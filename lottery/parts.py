"""Parts of one's own: an architecture, a criterion or a variant, named ``package.module:function`` in params.yaml."""

import functools
import hashlib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ruamel.yaml import YAML

from lottery.errors import LotteryError

T = TypeVar("T")
PATTERN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def is_own(name: str) -> bool:
    return ":" in name


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


def source(name: str) -> Path:
    """The file that a part of one's own is in."""
    _imported(name)
    file = sys.modules[name.partition(":")[0]].__file__
    assert file is not None
    return Path(file)


def source_sha256(name: str) -> str | None:
    """Of the file that a part of one's own is in; None for parts of this project."""
    return hashlib.sha256(source(name).read_bytes()).hexdigest() if is_own(name) else None


def warn(names: list[str], stage: str) -> None:
    """Says on standard error which sources of one's own DVC does not watch: those not among the stage's deps in dvc.yaml.

    Raises LotteryError where a part cannot be imported.
    """
    files = {name: source(name).resolve() for name in names if is_own(name)}
    if not files:
        return
    stages = YAML(typ="safe").load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    watched = {Path(dep).resolve() for dep in stages[stage]["deps"] if isinstance(dep, str)}
    for name, file in files.items():
        if not any(file == dep or dep in file.parents for dep in watched):
            print(
                f"{stage}: {name}: add {file} to the deps of {stage} in dvc.yaml: `dvc repro` does not see its changes",
                file=sys.stderr,
            )
