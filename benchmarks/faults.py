"""Kills `dvc repro` at random moments, in every stage, until it completes; counts what was lost.

    python -m benchmarks.faults [--kills 100] [--seed 0]

One undisturbed run in a clone of its own gives the reference. In a second clone the same experiment is
killed with SIGKILL again and again: the whole process group, DVC alone (the stage lives on), or one
worker. Whenever it completes, its `dvc.lock` must be the reference's byte for byte; then its results and
its run store are thrown away and it starts anew, until the kills are done. Prints a table by stage.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

from lottery import __main__ as commands

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import Clone, make_clone

EXPERIMENT = {
    "train.iterations": 400,
    "train.evaluate_every": 20,
    "prune.rounds": 3,
    "retrain.variants": ["ticket", "random_reinit", "random_mask"],
    "report.iteration_margin": 0.1,
}
STAGES = ["fetch", "train_dense", "prune", "extract_masks", "retrain", "report"]
SECONDS = {
    "fetch": 2.0,
    "train_dense": 6.5,
    "prune": 8.0,
    "extract_masks": 0.8,
    "retrain": 8.0,
    "report": 4.0,
}
MODES = ["group", "dvc", "worker"]
WITH_WORKERS = ("train_dense", "prune", "retrain")


def faulty_clone(path: Path) -> Clone:
    clone = make_clone(path)
    for key, value in EXPERIMENT.items():
        clone.change(key, value)
    clone.environment = {"LOTTERY_CHECKPOINT_SECONDS": "0", "LOTTERY_WORKERS": "2"}
    return clone


class Attempt(NamedTuple):
    """One `dvc repro`: its exit status (None: it was killed), what it printed, and what was killed where."""

    status: int | None
    text: str
    killed: tuple[str, str] | None = None  # stage and mode


def reproduce(
    clone: Clone, moment: str = "", delay: float = 0.0, mode: str = "group", target: str = ""
) -> Attempt:
    """Runs `dvc repro` and, so many seconds after it printed ``moment``, kills it, unless it was faster.

    Where only a worker is killed `dvc repro` goes on: asked for a ``target`` alone, it leaves later stages to kill.
    """
    with contextlib.chdir(clone.path):
        commands.main(["check", "--params"])  # as `make repro` does
    log = (
        clone.path.parent / f"repro-{time.monotonic_ns()}.log"
    )  # an orphaned stage goes on writing its own
    with open(log, "wb") as out:
        process = subprocess.Popen(
            ["dvc", "repro", *([target] if target else [])],
            cwd=clone.path,
            env=clone.env(),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        while process.poll() is None and moment and moment not in log.read_text():
            time.sleep(0.02)
        while mode == "worker" and process.poll() is None and not workers_of(process):
            time.sleep(0.02)  # the stage may wait for one that lives on after a kill of DVC alone
        if moment and process.poll() is None:
            time.sleep(delay)
        if not moment or process.poll() is not None:
            return Attempt(process.wait(timeout=300), log.read_text())
        running = re.findall("Running stage '(.*)'", log.read_text())[-1]
        if mode == "worker":
            workers = workers_of(process)
            if not workers:
                return Attempt(process.wait(timeout=300), log.read_text())
            random.choice(workers).kill()
            return Attempt(process.wait(timeout=300), log.read_text(), (running, mode))
        if mode == "dvc":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Attempt(None, log.read_text(), (running, mode))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]
    except psutil.Error:
        return []


def is_worker(process: psutil.Process) -> bool:
    try:
        return "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def start_anew(clone: Clone) -> None:
    """Throws away all that the experiment has made."""
    for name in (".runs", "reports", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone.path / name, ignore_errors=True)
    (clone.path / "dvc.lock").unlink(missing_ok=True)
    for path in (clone.path / "data").iterdir():
        if path.is_dir() and path.name != "own":  # which is the user's
            shutil.rmtree(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    kills: Counter[tuple[str, str]] = Counter()
    completions = lost = 0
    with tempfile.TemporaryDirectory() as folder:
        reference = faulty_clone(Path(folder) / "reference" / "clone")
        status, text, _ = reproduce(reference)
        assert status == 0, text
        expected = (reference.path / "dvc.lock").read_bytes()
        clone = faulty_clone(Path(folder) / "killed" / "clone")
        plan: list[tuple[str, str]] = []
        while sum(kills.values()) < options.kills or plan:
            if not plan:  # each stage with each way, in the pipeline's order, then to completion
                plan = [
                    (stage, mode)
                    for stage in STAGES
                    for mode in MODES
                    if mode != "worker" or stage in WITH_WORKERS
                ]
                if sum(kills.values()):
                    start_anew(clone)
            stage, mode = plan.pop(0)
            target = stage if mode == "worker" else ""
            moment = f"Running stage '{stage}'"
            attempt = reproduce(clone, moment, random.uniform(0, SECONDS[stage]), mode, target)
            if attempt.killed:
                kills[attempt.killed] += 1
                print(f"{sum(kills.values())}: {', '.join(attempt.killed)}", flush=True)
            if attempt.status not in (None, 0):
                lost += 1
                print(attempt.text)
            if not plan:
                status, text, _ = reproduce(clone)
                completions += 1
                if status != 0 or (clone.path / "dvc.lock").read_bytes() != expected:
                    lost += 1
                    print(text)
    print("| stage | " + " | ".join(f"killed: {mode}" for mode in MODES) + " |")
    print("|---|" + "--:|" * len(MODES))
    for stage in STAGES:
        print(f"| {stage} | " + " | ".join(str(kills[stage, mode]) for mode in MODES) + " |")
    print(f"\n{sum(kills.values())} kills, {completions} completions, {lost} lost or different")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
