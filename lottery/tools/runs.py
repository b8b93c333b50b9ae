"""The run store, shared by all clones: ``python -m lottery runs`` lists it and prunes it."""

import argparse
import contextlib
import re
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from lottery.errors import LotteryError
from lottery.running import store


class Kept(NamedTuple):
    """One run of the store, for people."""

    fingerprint: str
    experiment: str  # its dataset and model
    name: str
    status: str
    bytes: int
    age: float  # seconds since it was last used
    files: tuple[Path, ...]


def kept() -> list[Kept]:
    """What the store holds, the last used first; unreadable is damaged, vanished left out."""
    by_fingerprint: dict[str, list[Path]] = {}
    for path in store.folder().glob("[!.]" * 64 + ".*"):
        by_fingerprint.setdefault(path.name[:64], []).append(path)
    runs = []
    for fingerprint, paths in by_fingerprint.items():
        experiment, name, status = "?", "?", "damaged"
        for ending in (store.FINISHED, store.CHECKPOINT, store.PREVIOUS):
            if facts := store.read_facts(store.file(fingerprint, ending)):
                at = f"at {facts.get('iteration')} of {facts.get('iterations')}"
                name = str(facts.get("name", "?"))
                experiment = f"{facts.get('dataset', '?')}, {facts.get('model', '?')}"
                status = "finished" if ending == store.FINISHED else at
                break
        sizes = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat())
        if sizes:
            size, age = sum(s.st_size for s in sizes), time.time() - max(s.st_mtime for s in sizes)
            runs.append(Kept(fingerprint, experiment, name, status, size, age, tuple(paths)))
    return sorted(runs, key=lambda k: (k.age, k.fingerprint))


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery runs``: lists the run store, or removes runs from it."""
    parser = argparse.ArgumentParser(prog="python -m lottery runs", description=main.__doc__)
    older = "remove runs last used longer ago: 12h, 30d"
    parser.add_argument("--older-than", metavar="AGE", type=_age, help=older)
    add = partial(parser.add_argument, action="store_true")
    add("--keep-used", help="remove runs that the latest results of no folder use")
    add("--dry-run", help="say what would be removed, and remove nothing")
    options = parser.parse_args(arguments)
    try:
        all_runs, used = kept(), store.used()
        if options.older_than is None and not options.keep_used:
            _list(all_runs, used)
            return
        going = [
            run
            for run in all_runs
            if (options.older_than is None or run.age > options.older_than)
            and not (options.keep_used and run.fingerprint in used)
        ]
        _list(going, used)
        for path in (p for run in going for p in run.files if not options.dry_run):
            path.unlink(missing_ok=True)  # a stage may have finished the run meanwhile
        removed = "nothing was" if options.dry_run else f"{len(going)} runs"
        print(f"{removed} removed" + " (--dry-run)" * options.dry_run)
    except OSError as error:
        raise LotteryError(str(error)) from None


def _list(runs: list[Kept], used: set[str]) -> None:
    row, size = "{:8}  {:>8}  {:>5}  {:4}  {:<20} {}".format, tqdm.format_sizeof
    print(row("RUN", "SIZE", "AGE", "USED", "STATUS", "NAME"))
    for experiment in dict.fromkeys(run.experiment for run in runs):
        print(f"{experiment}:")
        for run in runs:
            if run.experiment == experiment:
                used_ = "yes" if run.fingerprint in used else "no"
                columns = run.fingerprint[:8], size(run.bytes, "B"), _since(run.age), used_
                print(row(*columns, run.status, run.name))
    total = size(sum(run.bytes for run in runs), "B")
    print(f"{len(runs)} runs, {total}, in {store.folder()}")


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(seconds: float) -> str:
    unit = next((u for u in "dhm" if seconds >= UNITS[u]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"


def _age(text: str) -> float:
    if match := re.fullmatch(r"(\d+|\d*\.\d+)([smhd])", text):
        return float(match[1]) * UNITS[match[2]]
    why = f"got {text!r}; accepted: a number and s, m, h or d, as in 30d"
    raise argparse.ArgumentTypeError(why)
