"""The run store `.runs/`: finished runs, and the checkpoint of each unfinished one, under its fingerprint.

Deleting it costs time, never correctness. One stage at a time writes it, guarded by a lock that the
operating system releases when its holder dies, however it dies. On the nodes of a cluster there is none: there
``elsewhere`` takes calls to where the stage runs.
"""

import contextlib
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from lottery.artifacts import files
from lottery.errors import LotteryError

FOLDER = Path(".runs")
FINISHED, CHECKPOINT, PREVIOUS, DAMAGED = (
    ".finished",
    ".checkpoint",
    ".checkpoint-before",
    ".damaged",
)
HOLDER = "writer.json"

Nested = dict[str, dict[str, np.ndarray]]

P = ParamSpec("P")
T = TypeVar("T")

elsewhere: Callable[..., Any] | None = None
"""On a node of a cluster: calls a function of this module, by name, where the store is."""


def where_the_store_is(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return (
            function(*args, **kwargs)
            if elsewhere is None
            else elsewhere(function.__name__, *args, **kwargs)
        )

    return call


def checkpoint_seconds() -> float:
    """``LOTTERY_CHECKPOINT_SECONDS``: the least time between two checkpoints of a run, by default 30."""
    given = os.environ.get("LOTTERY_CHECKPOINT_SECONDS", "30")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise LotteryError(
            f"LOTTERY_CHECKPOINT_SECONDS: got {given!r}; accepted: a number from 0 up"
        )
    return seconds


@contextlib.contextmanager
def one_writer(who: str, folder: Path = FOLDER) -> Iterator[None]:
    """Holds the store; waits, saying for whom, while another process does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{who}: waiting: {_holder(folder)}", file=sys.stderr, flush=True)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise LotteryError(
            f"{folder}: the run store cannot be written: {error.strerror or error}"
        ) from None
    try:
        holder = {
            "stage": who,
            "pid": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%F %T %z"),
        }
        files.write_json(folder / HOLDER, holder)
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    with contextlib.suppress(LotteryError, KeyError, TypeError):
        h = files.read_json(folder / HOLDER)
        return (
            f"{h['stage']} with pid {h['pid']} on {h['host']} has held the run store {folder} since {h['since']}; "
            f"it goes on by itself when that ends (or end it: kill {h['pid']})"
        )
    return f"another process holds the run store {folder}; it goes on by itself when that ends"


def save(path: Path, groups: Nested, facts: dict[str, Any]) -> None:
    """Writes groups of arrays and the facts, whole or not at all, with a checksum inside."""
    tensors = {
        f"{group}/{name}": value
        for group, arrays in groups.items()
        for name, value in arrays.items()
    }
    files.write_tensors(path, tensors, facts)


def load(path: Path) -> tuple[Nested, dict[str, Any]] | None:
    """What save() wrote; None where there is nothing, or where it is damaged: then it is set aside, with a warning."""
    try:
        tensors, facts = files.tensors_from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        aside = path.with_name(path.name + DAMAGED)
        os.replace(path, aside)
        print(f"warning: {path}: {error}; set aside as {aside.name}", file=sys.stderr, flush=True)
        return None
    groups: Nested = {}
    for name, value in tensors.items():
        group, rest = name.split("/", 1)
        groups.setdefault(group, {})[rest] = value
    return groups, facts


def file(fingerprint: str, ending: str) -> Path:
    return FOLDER / f"{fingerprint}{ending}"


@where_the_store_is
def save_finished(fingerprint: str, groups: Nested, facts: dict[str, Any]) -> None:
    """Keeps a finished run, which needs no checkpoint any more."""
    save(file(fingerprint, FINISHED), groups, facts)
    _remove_checkpoints(fingerprint)


@where_the_store_is
def load_finished(fingerprint: str) -> tuple[Nested, dict[str, Any]] | None:
    path = file(fingerprint, FINISHED)
    found = load(path)
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(path)  # its age is the time since it was last used
        _remove_checkpoints(fingerprint)  # left by a kill between the two writes of save_finished()
    return found


def _remove_checkpoints(fingerprint: str) -> None:
    for ending in (CHECKPOINT, PREVIOUS):
        file(fingerprint, ending).unlink(missing_ok=True)


@where_the_store_is
def save_checkpoint(fingerprint: str, groups: Nested, facts: dict[str, Any]) -> None:
    """Keeps the state of an unfinished run; the checkpoint before stays beside it."""
    newest = file(fingerprint, CHECKPOINT)
    with contextlib.suppress(FileNotFoundError):
        os.replace(newest, file(fingerprint, PREVIOUS))
    save(newest, groups, facts)


@where_the_store_is
def load_checkpoint(fingerprint: str) -> tuple[Nested, dict[str, Any]] | None:
    """The newest checkpoint that is whole."""
    return load(file(fingerprint, CHECKPOINT)) or load(file(fingerprint, PREVIOUS))


def save_used(stage: str, fingerprints: list[str]) -> None:
    """Notes which runs the artifacts of a stage were made of."""
    files.write_json(FOLDER / f"used-by-{stage}.json", sorted(set(fingerprints)))


@dataclass(frozen=True)
class Entry:
    """One run of the store, for people."""

    fingerprint: str
    name: str
    status: str
    bytes: int
    age: float  # seconds since it was last used
    used: bool  # by the latest run of a stage
    files: tuple[Path, ...]


def entries(folder: Path = FOLDER) -> list[Entry]:
    """What the store holds, newest first. Files that cannot be read count as damaged; those that a stage removes meanwhile are left out."""
    used: set[str] = set()
    for path in folder.glob("used-by-*.json"):
        with contextlib.suppress(LotteryError, TypeError):
            used.update(files.read_json(path))
    by_name: dict[str, list[Path]] = {}
    for path in folder.glob("*.*"):
        fingerprint, _, ending = path.name.partition(".")
        if len(fingerprint) == 64 and ending:
            by_name.setdefault(fingerprint, []).append(path)
    now = time.time()
    found = []
    for fingerprint, paths in by_name.items():
        name, status = "?", "damaged"
        for ending, called in (
            (FINISHED, "finished"),
            (CHECKPOINT, "unfinished"),
            (PREVIOUS, "unfinished"),
        ):
            facts = read_facts(folder / f"{fingerprint}{ending}")
            if facts is not None:
                name = str(facts.get("name", "?"))
                status = (
                    called
                    if called == "finished"
                    else f"at {facts.get('iteration')} of {facts.get('iterations')}"
                )
                break
        sizes = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat())
        if not sizes:
            continue
        found.append(
            Entry(
                fingerprint,
                name,
                status,
                sum(s.st_size for s in sizes),
                now - max(s.st_mtime for s in sizes),
                fingerprint in used,
                tuple(paths),
            )
        )
    return sorted(found, key=lambda e: (e.age, e.fingerprint))


def read_facts(path: Path) -> dict[str, Any] | None:
    """The facts in a file's header, without reading the rest."""
    try:
        with open(path, "rb") as content:
            size = int.from_bytes(content.read(8), "little")
            if size > 10_000_000:
                return None
            return json.loads(json.loads(content.read(size))["__metadata__"]["lottery"])["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
