"""What every stage does around its work: arguments, parameters, a lock on the folder, errors."""

import argparse
import contextlib
import importlib
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from lottery import code, parts
from lottery.artifacts import files
from lottery.datasets.catalogue import read_params
from lottery.errors import LotteryError, plain, print_any_character, say
from lottery.params import Params
from lottery.params.reading import read_yaml

LOCK = Path(".dvc/tmp/stage.lock")
HOLDER = Path(".dvc/tmp/stage.json")
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
        say(
            f"{name}: interrupted; finished runs are kept, `dvc repro` goes on with the others",
            sys.stderr,
        )
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run(name: str) -> None:
    """Runs a stage in this process.

    Parameters are checked whole, before anything else. They and the code are taken once, at the
    start, and compared at the end: DVC looks at them only afterwards, and would take a result for
    another's.

    Raises LotteryError.
    """
    loaded = read_params()
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    given = _values(loaded, stages[name].get("params", []))
    own = {
        stage: parts.named(_values(loaded, listed["params"]))
        for stage, listed in stages.items()
        if parts.FOLDER in listed["deps"]
    }
    model = parts.module_of(str(loaded.model.name))
    began = code.of_stage(f"stages.{name}", map(parts.module_of, own.get(name, [])), model)
    for stage, names in own.items():
        for line in parts.unseen(names, stage, stages[stage]["deps"]):
            raise LotteryError(f"params.yaml: {line}")
    if any(names for stage, names in own.items() if stage != "fetch"):  # which calls its own
        # by name: what most stages write does not depend on the modules that try them
        importlib.import_module("lottery.tickets.own").check(loaded, fetched=name != "fetch")
    with _one_stage_at_a_time(name):
        importlib.import_module(f"stages.{name}").main(Stage(name, loaded, began))
    changed = [f"{module}: its code is not what it was" for module in began.changed()]
    now = _values(read_params(), stages[name].get("params", []))
    for key in given:
        if given[key] != now[key]:
            changed.append(
                f"params.yaml: {key} was {given[key]} when the stage began, now {now[key]}"
            )
    if changed:
        again = "the result is not taken; `dvc repro` goes on from the runs, kept as what they are"
        raise LotteryError("\n".join([*changed, f"changed while the stage ran: {again}"]))


def _values(loaded: Params, keys: list[str]) -> dict[str, Any]:
    """The values of dotted keys, or of all below them where they are sections."""
    found: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        """Takes a value, or all below it."""
        if isinstance(value, dict):
            for name in value:
                add(f"{key}.{name}", value[name])
        else:
            found[key] = value

    for key in keys:
        value: Any = loaded.model_dump()
        for part in key.split("."):
            value = value[part]
        add(key, value)
    return found


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
            say(f"{name}: waiting: {_holder()}", sys.stderr)
            lock.acquire(poll_interval=0.2)
    except OSError as error:
        raise LotteryError(f"{LOCK}: cannot be written: {error.strerror or error}") from None
    try:
        since = time.strftime("%F %T %z")
        host = platform.node()
        files.write_json(HOLDER, {"stage": name, "pid": os.getpid(), "host": host, "since": since})
        yield
    finally:
        HOLDER.unlink(missing_ok=True)
        lock.release()


def _holder() -> str:
    with contextlib.suppress(LotteryError, KeyError, TypeError):
        h = files.read_json(HOLDER)
        return (
            f"{h['stage']} with pid {h['pid']} on {h['host']} has written in this folder since "
            f"{h['since']}; it goes on by itself when that ends (or end it: kill {h['pid']})"
        )
    return "another stage writes in this folder; it goes on by itself when that ends"
