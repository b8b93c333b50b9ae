"""The run store: ``python -m lottery runs`` lists it and prunes it."""

import argparse

from lottery.errors import LotteryError
from lottery.running import store


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery runs``: lists the run store, or removes runs from it."""
    parser = argparse.ArgumentParser(prog="python -m lottery runs", description=main.__doc__)
    parser.add_argument(
        "--older-than", metavar="AGE", type=_age, help="remove runs last used longer ago: 12h, 30d"
    )
    parser.add_argument(
        "--keep-used", action="store_true", help="remove runs that the latest results do not use"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    options = parser.parse_args(arguments)
    try:
        if options.older_than is None and not options.keep_used:
            _list(store.entries())
            return
        with store.one_writer("lottery runs"):
            going = [
                entry
                for entry in store.entries()
                if (options.older_than is None or entry.age > options.older_than)
                and not (options.keep_used and entry.used)
            ]
            _list(going)
            for path in (p for entry in going for p in entry.files if not options.dry_run):
                path.unlink()
        print(
            "nothing was removed (--dry-run)" if options.dry_run else f"{len(going)} runs removed"
        )
    except (LotteryError, OSError) as error:
        parser.exit(1, f"lottery runs: {error}\n")


def _list(entries: list[store.Entry]) -> None:
    for entry in entries:
        used = "used" if entry.used else ""
        print(
            f"{entry.fingerprint[:12]}  {_bytes(entry.bytes):>9}  {_since(entry.age):>6}  {used:4}  {entry.status:16}  {entry.name}"
        )
    print(f"{len(entries)} runs, {_bytes(sum(e.bytes for e in entries))}")


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
    number, unit = text[:-1], text[-1:]
    try:
        return float(number) * UNITS[unit]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(
            f"got {text!r}; accepted: a number and s, m, h or d, as in 30d"
        ) from None
