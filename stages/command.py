"""What every stage does around its work: arguments, parameters, errors."""

import argparse
import inspect
import os
import signal
import sys
from collections.abc import Callable

from lottery.datasets import catalogue
from lottery.errors import LotteryError
from lottery.params import Params
from lottery.running import store


def main(work: Callable[[Params], None]) -> None:
    """Runs a stage from the command line: ``python -m stages.<name>``.

    The whole of params.yaml is checked first; then it waits until no other stage runs in this folder. A user's mistake ends it with plain lines on standard
    error and exit status 1, Ctrl-C with 130.
    """
    module = inspect.getmodule(work)
    assert module is not None
    assert module.__file__ is not None
    name = os.path.basename(module.__file__).removesuffix(".py")
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=module.__doc__,
        epilog="Reads params.yaml in the present folder; `dvc repro` runs the stages in order.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        loaded = catalogue.read_params()
        store.checkpoint_seconds()  # refused now rather than in a worker
        with store.one_writer(name):
            for unfinished in store.FOLDER.glob(
                ".*.tmp"
            ):  # of writers that were killed; there is none now
                unfinished.unlink(missing_ok=True)
            work(loaded)
    except LotteryError as error:
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; finished runs are kept, `dvc repro` goes on with the others",
            file=sys.stderr,
        )
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
