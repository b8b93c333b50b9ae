"""What every stage does around its work: arguments, parameters, a lock on the folder, errors."""

import argparse
import contextlib
import importlib
import importlib.util
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from lottery import code, parts
from lottery.artifacts import files
from lottery.errors import LotteryError, plain, print_any_character, say
from lottery.params import Params, load
from lottery.params.reading import differences, read_yaml, value_at

LOCK = Path(".dvc/tmp/stage.lock")
HOLDER = Path(".dvc/tmp/stage.txt")  # who holds it
PATIENCE = "it goes on by itself when that ends"
EXPERIMENTS = "/.dvc/tmp/exps/"  # where DVC runs queued experiments and those of --temp
GONE = "not there|cannot be imported"  # what errors say where something is not in it
OF_ITS_OWN = (
    "this experiment runs in a folder of its own, with what git tracks: `git add` your modules, "
    "name sources by absolute paths, or have `dvc exp run` copy them: -C FILE"
)


class Stage(NamedTuple):
    """What a stage is given: its name, and the parameters and code as they are when it begins."""

    name: str
    params: Params
    code: code.Code


def main(name: str) -> None:
    """Runs a stage from the command line: ``python -m stages.<name>``.

    A user's mistake ends it with plain lines on standard error and exit status 1, Ctrl-C with 130.
    """
    argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=importlib.import_module(f"stages.{name}").__doc__,
        epilog="Reads params.yaml in the present folder; `dvc repro` runs the stages in order.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as stages/__init__.py has set it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    print_any_character()
    try:
        run(name)
    except (LotteryError, MemoryError, ImportError) as error:
        for line in plain(error).splitlines():
            say(f"{name}: {line}", sys.stderr)
        if EXPERIMENTS in Path.cwd().as_posix() and re.search(GONE, str(error)):
            say(f"{name}: {OF_ITS_OWN}", sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        kept = "finished runs are kept, `dvc repro` goes on with the others"
        say(f"{name}: interrupted; {kept}", sys.stderr)
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run(name: str) -> None:
    """Runs a stage in this process.

    Parameters are checked whole, before anything else. They, the code and the files that the stage
    depends on are compared at the end with what they were at the start: DVC looks at them only
    afterwards, and would take a result for another's.

    Raises LotteryError.
    """
    loaded = load()
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    keys, values = stages[name].get("params", []), loaded.model_dump()
    own = {
        stage: parts.named([value_at(values, key) for key in stages[stage].get("params", [])])
        for stage in code.CALL_PARTS
        if stage in stages
    }
    modules, model = [*map(parts.module_of, own.get(name, []))], parts.module_of(loaded.model.name)
    began = code.of_stage(f"stages.{name}", modules, model if model in modules else "")
    for module in (module for module, _ in began.modules if not code.is_ours(module)):
        if file := code.source(module):  # Python compares whole seconds and sizes: not enough
            with contextlib.suppress(OSError):  # not there, or of another user's
                Path(importlib.util.cache_from_source(str(file))).unlink()
    for stage, names in own.items():
        for line in parts.unseen(names, stage, stages[stage].get("deps", [])):
            raise LotteryError(f"params.yaml: {line}")
    if any(names for stage, names in own.items() if stage != "fetch"):  # which calls its own
        # by name: what most stages write does not depend on the modules that try them
        importlib.import_module("lottery.tickets.own").check(loaded, fetched=name != "fetch")
    if loaded.retrain.masks and name in ("fetch", "train_dense"):  # before hours, not after
        importlib.import_module("lottery.tickets.given").check(loaded)
    with _one_stage_at_a_time(name):
        read = files.inputs(stages[name]["deps"])
        importlib.import_module(f"stages.{name}").main(Stage(name, loaded, began))
        after = files.inputs(stages[name]["deps"])
    changed = [f"{module}: its code is not what it was" for module in began.changed()]
    changed += [
        f"{p}: was written, made or removed" for p in read | after if read.get(p) != after.get(p)
    ]
    now = load().model_dump()
    for key in keys:
        lines = differences(key, *(value_at(source, key) for source in (values, now)))
        changed += [f"params.yaml: {line}" for line in lines]
    if changed:
        again = "the result is not taken; `dvc repro` goes on from the runs, kept as what they are"
        raise LotteryError("\n".join([*changed, f"changed while the stage ran: {again}"]))


@contextlib.contextmanager
def _one_stage_at_a_time(name: str) -> Iterator[None]:
    """Waits, saying for whom, while another stage writes in this folder.

    The lock is gone with its holder, however that ends.
    """
    try:
        LOCK.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = f"another stage writes in this folder; {PATIENCE}"
            with contextlib.suppress(OSError):  # not there for a moment
                who = HOLDER.read_text()
            say(f"{name}: waiting: {who}", sys.stderr)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise LotteryError(f"{LOCK}: cannot be written: {error.strerror or error}") from None
    try:
        pid, since = os.getpid(), time.strftime("%F %T %z")
        who = f"{name} with pid {pid} on {platform.node()} has written in this folder since {since}"
        files.write(HOLDER, f"{who}; {PATIENCE} (or end it: kill {pid})".encode())
        yield
    finally:
        HOLDER.unlink(missing_ok=True)
        lock.release()
