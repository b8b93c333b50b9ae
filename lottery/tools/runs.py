"""The run store, shared by all clones: ``python -m lottery runs`` lists it and prunes it."""

import argparse
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from lottery.errors import LotteryError
from lottery.running import store


@dataclass(frozen=True)
class Kept:
    """One run of the store, for people."""

    fingerprint: str
    experiment: str  # its dataset and model
    name: str
    status: str
    bytes: int
    age: float  # seconds since it was last used
    files: tuple[Path, ...]


def kept() -> list[Kept]:
    """What the store holds, the last used first.

    Unreadable files count as damaged; those that vanish meanwhile are left out.
    """
    by_fingerprint: dict[str, list[Path]] = {}
    for path in store.folder().glob("*.*"):
        fingerprint, _, ending = path.name.partition(".")
        if len(fingerprint) == 64 and ending:
            by_fingerprint.setdefault(fingerprint, []).append(path)
    found = []
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
            found.append(Kept(fingerprint, experiment, name, status, size, age, tuple(paths)))
    return sorted(found, key=lambda k: (k.age, k.fingerprint))


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery runs``: lists the run store, or removes runs from it."""
    parser = argparse.ArgumentParser(prog="python -m lottery runs", description=main.__doc__)
    parser.add_argument(
        "--older-than", metavar="AGE", type=_age, help="remove runs last used longer ago: 12h, 30d"
    )
    parser.add_argument(
        "--keep-used",
        action="store_true",
        help="remove runs that the latest results of no folder use",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
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
        print(
            "nothing was removed (--dry-run)" if options.dry_run else f"{len(going)} runs removed"
        )
    except (LotteryError, OSError) as error:
        parser.exit(1, f"lottery runs: {error}\n")


def _list(runs: list[Kept], used: set[str]) -> None:
    row = "{:8}  {:>8}  {:>5}  {:4}  {:<20} {}".format
    print(row("RUN", "SIZE", "AGE", "USED", "STATUS", "NAME"))
    for experiment in dict.fromkeys(run.experiment for run in runs):
        print(f"{experiment}:")
        for run in runs:
            if run.experiment == experiment:
                used_ = "yes" if run.fingerprint in used else "no"
                of = run.fingerprint[:8], _bytes(run.bytes), _since(run.age), used_
                print(row(*of, run.status, run.name))
    print(f"{len(runs)} runs, {_bytes(sum(run.bytes for run in runs))}, in {store.folder()}")


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _since(seconds: float) -> str:
    unit = next((u for u in "dhm" if seconds >= UNITS[u]), "s")
    return f"{seconds / UNITS[unit]:.0f} {unit}"


def _age(text: str) -> float:
    try:
        seconds = float(text[:-1]) * UNITS[text[-1:]]
    except (KeyError, ValueError):
        seconds = -1.0
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; accepted: a number and s, m, h or d, as in 30d"
        )
    return seconds
