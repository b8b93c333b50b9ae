"""Whether dvc.lock and reports/ belong to parameters and code: ``python -m lottery check``.

Needs neither data nor cache nor network. Prints a line for each cause, by stage, and exits with 1
where there is one; where params.yaml itself is at fault, a line for each mistake in it.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lottery.datasets.catalogue import read_params
from lottery.errors import LotteryError

ABSENT = ("deleted", "not in cache")  # what DVC says of what is not there
ARTIFACTS = ("data/", "reports/report.html")  # which is no mistake of these: a fresh clone has none


def causes(
    status: dict[str, list[Any]], locked: dict[str, Any], params: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Stage and cause, for each thing that is not as ``dvc.lock`` has it.

    Args:
        status: what ``dvc status --json`` prints.
        locked: the stages of ``dvc.lock``.
        params: the content of ``params.yaml``.
    """
    for stage, entries in status.items():
        if stage not in locked:
            yield stage, "has never run: it is not in dvc.lock"
            continue
        for entry in entries:
            if not isinstance(entry, dict):
                yield stage, f"its {str(entry).removeprefix('changed ')} in dvc.yaml has changed"
                continue
            for path, how in {
                **entry.get("changed deps", {}),
                **entry.get("changed outs", {}),
            }.items():
                if isinstance(how, dict):
                    before = locked[stage].get("params", {}).get(path, {})
                    for key in how:
                        for line in differences(key, _at(before, key), _at(params, key)):
                            yield stage, f"{path}: {line}"
                elif how not in ABSENT:
                    yield stage, f"{path}: {_said(path, how)}"
                elif not path.startswith(ARTIFACTS):
                    yield stage, f"{path}: not there"


def _said(path: str, how: str) -> str:
    what = (
        "is not what the stage wrote"
        if path.startswith("reports/")
        else "has changed since the stage ran"
    )
    return what if how == "modified" else f"{how} since the stage ran"


MISSING = "(absent)"


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key; dvc.lock holds such keys whole."""
    if isinstance(values, dict) and key in values:
        return values[key]
    for part in key.split("."):
        values = values.get(part, MISSING) if isinstance(values, dict) else MISSING
    return values


def differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """``key: before, now after`` for each value that differs, by its full key."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from differences(
                f"{key}.{name}", before.get(name, MISSING), now.get(name, MISSING)
            )
    elif before != now:
        yield f"{key} was {_short(before)} when the stage ran, now {_short(now)}"


def _short(value: Any) -> str:
    return value if value is MISSING else json.dumps(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lottery check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--params", action="store_true", help="only params.yaml, before DVC reads it"
    )
    options = parser.parse_args(arguments)
    try:
        read_params()
    except LotteryError as error:
        parser.exit(1, "".join(f"check: {line}\n" for line in str(error).splitlines()))
    if options.params:
        return
    yaml = YAML(typ="safe")
    if not Path("dvc.yaml").exists():
        parser.exit(1, "check: no dvc.yaml here: run it in the top folder of the project\n")
    if not Path("dvc.lock").exists():
        parser.exit(
            1,
            "check: no dvc.lock: the pipeline has not run here: `dvc repro`, then commit dvc.lock "
            "and reports/\n",
        )
    done = subprocess.run(["dvc", "status", "--json"], capture_output=True, text=True)
    if done.returncode:
        parser.exit(1, f"check: dvc status failed: {done.stderr.strip()}\n")
    locked = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    params = yaml.load(Path("params.yaml").read_text(encoding="utf-8"))
    found = list(dict.fromkeys(causes(json.loads(done.stdout), locked, params)))
    for stage, cause in found:
        print(f"{stage}: {cause}")
    if found:
        stages = list(dict.fromkeys(stage for stage, _ in found))
        parser.exit(
            1,
            f"check: out of date: {', '.join(stages)}: `dvc repro`, then commit dvc.lock "
            "and reports/\n",
        )
    print("dvc.lock and reports/ belong to the parameters and the code")
