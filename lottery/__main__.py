"""The commands beside the pipeline: ``python -m lottery COMMAND``."""

import importlib
import os
import sys
from pathlib import Path

from lottery.errors import LotteryError, plain, print_any_character, say

COMMANDS = {
    "plan": "what an experiment will cost, before it is started",
    "check": "whether dvc.lock and reports/ belong to the parameters and the code",
    "verify": "whether the committed results come out again, bit for bit",
    "compare": "the results of a revision beside the present ones",
    "export": "a ticket for other programs",
    "tickets": "the masks of all tickets, for others to take over",
    "paper": "the results as PDF figures and a LaTeX table, in reports/paper",
    "runs": "lists the run store, or removes runs from it",
}


def main(arguments: list[str] | None = None) -> None:
    """Hands over to the command's module; without a known command, lists them.

    A user's mistake ends it with plain lines on standard error and exit status 1.
    """
    print_any_character()
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    lines = [f"  {command:<9}{what}" for command, what in COMMANDS.items()]
    text = "\n".join(["usage: python -m lottery COMMAND [--help | …]", "", *lines])
    if name in ("-h", "--help"):
        print(text)
        return
    if name not in COMMANDS:
        sys.exit(f"lottery: no command {name!r}\n{text}")
    try:
        importlib.import_module(f"lottery.tools.{name}").main(rest)
    except (LotteryError, MemoryError, ImportError) as error:
        for line in plain(error).splitlines():
            say(f"{name}: {line}", sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    here = Path(sys.executable).parent  # where dvc is, whether or not the environment is activated
    os.environ["PATH"] = f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    main()
