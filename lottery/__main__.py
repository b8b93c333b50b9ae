"""The commands beside the pipeline: ``python -m lottery COMMAND``."""

import importlib
import sys

COMMANDS = {
    "plan": "what an experiment will cost, before it is started",
    "check": "whether dvc.lock and reports/ belong to the parameters and the code",
    "verify": "whether the committed results come out again, bit for bit",
    "compare": "the results of a revision beside the present ones",
    "export": "a ticket for other programs",
    "tickets": "the masks of all tickets, for others to take over",
    "runs": "lists the run store, or removes runs from it",
}


def main() -> None:
    """Hands over to the command's module; without a known command, lists them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        importlib.import_module(f"lottery.tools.{name}").main(sys.argv[2:])
        return
    lines = [f"  {command:<9}{what}" for command, what in COMMANDS.items()]
    text = "\n".join(["usage: python -m lottery COMMAND [--help | …]", "", *lines])
    if name in ("-h", "--help"):
        print(text)
    else:
        sys.exit(f"lottery: no command {name!r}\n{text}")


if __name__ == "__main__":
    main()
