"""dvc.yaml and dvc.lock as DVC takes them, and what a DVC that was killed leaves of its files."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from lottery.errors import LotteryError
from lottery.params.reading import CONFLICT_MARK, read_yaml

PIPELINE, LOCK = Path("dvc.yaml"), Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")

Stages = dict[str, dict[str, Any]]


def stages_of(path: Path) -> Stages | None:
    """The stages of ``dvc.yaml`` or ``dvc.lock``, None where it is not there; LotteryError where it
    is cut off, not YAML, or in conflict.
    """
    if path == LOCK and cut_off():
        way = f"`make repro` makes it again, or `git checkout {LOCK}`"
        raise LotteryError(f"{LOCK}: cut off: {way}")
    if not path.exists():
        return None
    content = read_yaml(path)
    return content["stages"] if path == LOCK else _resolved(content)


def md5s(stage: dict[str, Any], kind: str) -> dict[str, str]:
    """Those that ``dvc.lock`` has of a stage's ``deps`` or ``outs``, by path."""
    return {one["path"]: one.get("md5", "") for one in stage.get(kind, [])}


def _resolved(content: dict[str, Any]) -> Stages:
    """The stages that DVC makes of a dvc.yaml: its variables, ``foreach`` and ``matrix`` filled."""
    from dvc.exceptions import DvcException
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return dict(DataResolver(repo, "", content).resolve()["stages"])
    except (DvcException, AssertionError, AttributeError, KeyError, TypeError) as error:
        why = str(error) if isinstance(error, DvcException) else "not what DVC takes"
        raise LotteryError(f"{PIPELINE}: {why}: `dvc stage list` tells more") from None


def mend() -> None:
    """Sets aside what a killed DVC has left of the files that it rewrites in place: its ``rwlock``,
    and a ``dvc.lock`` that is cut off. It makes both again; outputs and runs are in their stores.
    """
    for path, broken in ((RWLOCK, _is_no_json(RWLOCK)), (LOCK, cut_off())):
        if broken:
            os.replace(path, RWLOCK.with_name(f"{path.name}.cut-off"))
            why = "cut off, as by a DVC that was killed while it wrote it; it is made again"
            print(f"check: {path}: {why}", file=sys.stderr)


def _is_no_json(path: Path) -> bool:
    try:
        return path.exists() and not isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return True


def cut_off() -> bool:
    """Whether there is a ``dvc.lock`` that ends in the midst of an entry, so that DVC fails at it.

    One with git's marks of conflicts does not count: these are the user's to resolve.
    """
    if not LOCK.exists() or CONFLICT_MARK.search(LOCK.read_text(encoding="utf-8")):
        return False
    try:
        locked = read_yaml(LOCK)
        stages = locked["stages"].values()
        listed = [entry for s in stages for entry in (*s.get("deps", []), *s.get("outs", []))]
        values = [value for s in stages for value in s.get("params", {}).values()]
        whole = all(map(_is_whole, listed)) and all(isinstance(v, dict) for v in values)
        return not (whole and "schema" in locked and all("cmd" in stage for stage in stages))
    except (LotteryError, KeyError, TypeError, AttributeError):
        return True


def _is_whole(entry: dict[str, Any]) -> bool:
    numbers = [entry[name] for name in ("size", "nfiles") if name in entry]
    sums = {n: v for n, v in entry.items() if n not in ("path", "hash", "size", "nfiles", "isexec")}
    md5 = sums.get("md5", "0" * 32)  # of a URL, others
    hashed = sums and all(sums.values()) and re.fullmatch(r"[0-9a-f]{32}(\.dir)?", str(md5))
    return bool(entry["path"] and hashed) and all(isinstance(n, int) for n in numbers)
