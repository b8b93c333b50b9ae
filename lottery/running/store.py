"""The run store: finished runs, and the checkpoints of each unfinished one, under its fingerprint.

``LOTTERY_RUNS`` names its folder, which all clones, queued experiments and nodes of a cluster may
share. What lies under a fingerprint is a function of it and files appear whole, so writers need no
lock. Deleting the store costs time, never correctness.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lottery.artifacts import files
from lottery.errors import LotteryError

FINISHED, CHECKPOINT, PREVIOUS = ".finished", ".checkpoint", ".checkpoint-before"
DAMAGED = ".damaged"
LEFT_BEHIND = 86400.0  # seconds after which a temporary file counts as a killed writer's

Nested = dict[str, dict[str, np.ndarray]]


def folder() -> Path:
    """``LOTTERY_RUNS``, by default ``runs`` beside the datasets (in ``LOTTERY_CACHE``)."""
    given = os.environ.get("LOTTERY_RUNS")
    return Path(given).expanduser() if given else files.cache_folder() / "runs"


def checkpoint_seconds() -> float:
    """``LOTTERY_CHECKPOINT_SECONDS``, by default 30: the least time between a run's checkpoints."""
    given = os.environ.get("LOTTERY_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        accepted = "a number from 0 up"
        raise LotteryError(f"LOTTERY_CHECKPOINT_SECONDS: got {given!r}; accepted: {accepted}")
    return seconds


def tidy() -> None:
    """Removes what writers that were killed left behind long ago."""
    for path in folder().glob(f".*.{16 * '[0-9a-f]'}.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_BEHIND:
                path.unlink()


def file(fingerprint: str, ending: str) -> Path:
    """Where a run's result (``FINISHED``) or checkpoint lies."""
    return folder() / f"{fingerprint}{ending}"


def save(path: Path, groups: Nested, facts: dict[str, Any]) -> None:
    """Writes groups of arrays and the facts, whole or not at all, with a checksum inside, and with
    the fingerprint that the file is named after."""
    facts = {**facts, "fingerprint": path.name.partition(".")[0]}
    named = [(f"{group}/{n}", v) for group, arrays in groups.items() for n, v in arrays.items()]
    files.write_tensors(path, dict(named), facts)


def load(path: Path) -> tuple[Nested, dict[str, Any]] | None:
    """What save() wrote; None where there is nothing, or where it is damaged.

    Then it is set aside, with a warning.
    """
    try:
        tensors, facts = files.tensors_from_bytes(path.read_bytes())
        fingerprint = facts.pop("fingerprint", "")
        if not path.name.startswith(fingerprint):
            raise ValueError(f"of another run, {fingerprint[:8]}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        with contextlib.suppress(OSError):  # another process has set it aside
            os.replace(path, path.with_name(path.name + DAMAGED))
        print(f"warning: {path}: {why}; set aside as *{DAMAGED}", file=sys.stderr, flush=True)
        return None
    groups: Nested = {}
    for name, value in tensors.items():
        group, rest = name.split("/", 1)
        groups.setdefault(group, {})[rest] = value
    return groups, facts


def save_finished(fingerprint: str, groups: Nested, facts: dict[str, Any]) -> None:
    """Keeps a finished run, which needs no checkpoint any more."""
    save(file(fingerprint, FINISHED), groups, facts)
    _remove_checkpoints(fingerprint)


def load_finished(fingerprint: str) -> tuple[Nested, dict[str, Any]] | None:
    """A finished run; None where there is none."""
    path = file(fingerprint, FINISHED)
    loaded = load(path)
    if loaded is not None:
        with contextlib.suppress(OSError):
            os.utime(path)  # its age is the time since it was last used
        _remove_checkpoints(fingerprint)  # left by a kill between the two writes of save_finished()
    return loaded


def _remove_checkpoints(fingerprint: str) -> None:
    for ending in (CHECKPOINT, PREVIOUS):
        with contextlib.suppress(OSError):  # not there, for the most part
            file(fingerprint, ending).unlink()


def save_checkpoint(fingerprint: str, groups: Nested, facts: dict[str, Any]) -> None:
    """Keeps the state of an unfinished run; the checkpoint before stays beside it."""
    newest = file(fingerprint, CHECKPOINT)
    with contextlib.suppress(OSError):  # not there, or a folder stands in the way
        os.replace(newest, file(fingerprint, PREVIOUS))
    save(newest, groups, facts)


def load_checkpoint(fingerprint: str) -> tuple[Nested, dict[str, Any]] | None:
    """The newest checkpoint that is whole."""
    return load(file(fingerprint, CHECKPOINT)) or load(file(fingerprint, PREVIOUS))


def save_used(stage: str, fingerprints: Iterable[str]) -> None:
    """Notes which runs the artifacts of a stage in the present folder were made of."""
    here = os.getcwd()
    name = f"used-{hashlib.sha256(here.encode()).hexdigest()[:16]}-{stage}.json"
    files.write_json(folder() / name, {"folder": here, "runs": sorted(set(fingerprints))})


def used() -> set[str]:
    """The runs that the latest results of any folder were made of.

    Raises LotteryError where a note cannot be read: better nothing is removed then.
    """
    fingerprints: set[str] = set()
    for path in sorted(folder().glob("used-*.json")):
        match files.read_json(path):
            case {"folder": str(of), "runs": [*runs]} if all(isinstance(r, str) for r in runs):
                fingerprints.update(runs if Path(of).is_dir() else ())
            case _:
                raise LotteryError(f"{path}: no list of runs; delete it")
    return fingerprints


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file's header, without reading the rest; None where it has none."""
    try:
        with open(path, "rb") as content:
            size = int.from_bytes(content.read(8), "little")
            if size > 10_000_000:
                return None
            return json.loads(json.loads(content.read(size))["__metadata__"]["lottery"])["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
