"""What the stages that train share: workers that compute runs, what is written and said of them."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lottery.artifacts import tables
from lottery.artifacts.tables import Record
from lottery.errors import say
from lottery.params import check_fit
from lottery.running import executors, machine, store
from lottery.running.run import Experiment
from stages.command import Stage


def experiment(stage: Stage) -> Experiment:
    """What the runs have in common; LotteryError where the parameters do not fit the dataset."""
    store.checkpoint_seconds()  # refused now rather than in a worker
    store.tidy()
    common = Experiment(stage.params, stage.code.run)
    check_fit(stage.params, common.dataset.size)
    for seed in stage.params.seeds:
        common.split(seed)  # a class that is too small is named now
    if missing := stage.params.missing():
        say(f"{stage.name}: this experiment cannot end in a win: {missing}", sys.stderr)
    return common


def compute(stage: Stage, tasks: Sequence[executors.Task]) -> list[Any]:
    """The results of tasks, in their order."""
    threads = stage.params.train.threads
    prepare = partial(machine.prepare, threads, stage.code)
    return executors.compute(tasks, prepare, title=stage.name, threads=threads)


def write(folder: Path, records: Sequence[Record]) -> None:
    """``history.csv`` and ``environment.json``."""
    tables.write(folder / "history.csv", records)
    tables.write_environment(folder / "environment.json", [r.environment for r in records])


def conclude(stage: Stage, records: Sequence[Record]) -> None:
    """Notes which runs the stage used; says what came out, which diverged, what computed them."""
    store.save_used(stage.name, [record.fingerprint for record in records])
    ends: dict[str, list[float]] = {}
    for record in records:
        ends.setdefault(record.variant, []).append(100 * record.history["test_accuracy"][-1])
    width = max(map(len, ends), default=0)
    if ends:
        say(f"{stage.name}: test accuracy at the end, mean and range:")
    for variant, values in sorted(ends.items()):
        spread = f"{sum(values) / len(values):6.2f} % [{min(values):.2f}, {max(values):.2f}]"
        runs = f"{len(values)} run{'s' * (len(values) != 1)}"
        say(f"{stage.name}: {variant:<{width}}  {spread} {runs}")
    for record in records:
        if record.diverged:
            last = int(record.history["iteration"][-1])
            say(f"{stage.name}: diverged at iteration {last}: {tables.name_of_run(*record[:3])}")
    machines = {(r.environment["device"], r.cpu.split(" (")[0]) for r in records}
    for device, cpu in sorted(machines):  # of histories from elsewhere the CPU is not known
        say(f"{stage.name}: computed on {', '.join(filter(None, (device, cpu)))}")
