"""Whether dvc.lock and reports/ belong to parameters and code: ``python -m lottery check``.

Needs neither data nor cache; the network only where data.source is a URL that is not pinned. Prints
a line for each cause, by stage, and exits with 1 where there is one; where params.yaml itself is at
fault, a line for each mistake in it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lottery import code, parts
from lottery.artifacts.files import REPORTS, inputs
from lottery.datasets.pinning import asked_again, check_seen, covering
from lottery.datasets.sources import OWN, local
from lottery.errors import LotteryError
from lottery.params import PARAMS_FILE, Params, load
from lottery.params.reading import ABSENT, differences, read_yaml, value_at
from lottery.tools.dvc_files import LOCK, PIPELINE, Stages, md5s, mend, stages_of

NOT_HERE = ("deleted", "not in cache")  # what DVC says of what is not there
ARTIFACTS = ("data/", "reports/report.html")  # which is no mistake of these: a fresh clone has none
PAPER = REPORTS / "paper"

Cause = tuple[str, str]
"""A stage, and a line on what is not as when it ran."""


def changed_files(status: dict[str, list[Any]], locked: Stages, params: Any) -> Iterator[Cause]:
    """What DVC sees: commands, dependencies, outputs and parameters that have changed.

    ``status``: what ``dvc status --json`` prints; ``params``: the content of ``params.yaml``.
    """
    for stage, entries in status.items():
        told = [entry for entry in entries if entry != "always changed"]  # as its author wants it
        if ":" in stage or stage.endswith(".dvc"):
            if any(map(_tells_of_a_change, told)):
                yield stage, f"has changed: `dvc status` says what, `dvc repro {stage}` runs it"
            continue
        if stage not in locked:
            yield stage, "has never run: it is not in dvc.lock"
            continue
        for entry in told:
            if not isinstance(entry, dict):
                yield stage, f"its {str(entry).removeprefix('changed ')} in dvc.yaml has changed"
                continue
            changed = entry.get("changed deps", {}) | entry.get("changed outs", {})
            for path, how in changed.items():
                if isinstance(how, dict) and path == str(PARAMS_FILE):
                    before = locked[stage].get("params", {}).get(path, {})
                    for key in how:
                        for line in differences(key, value_at(before, key), value_at(params, key)):
                            yield stage, f"{path}: {line}"
                elif how == "modified" and path.startswith("reports/"):
                    yield stage, f"{path}: is not what the stage wrote"
                elif how not in NOT_HERE:
                    what = how if isinstance(how, str) and how != "modified" else "has changed"
                    yield stage, f"{path}: {what} since the stage ran"
                elif not path.startswith(ARTIFACTS):
                    yield stage, f"{path}: not there"


def _tells_of_a_change(entry: Any) -> bool:
    """Whether DVC's word on a stage, or on its files, is more than that data are not here."""
    return not isinstance(entry, dict) or any(
        how not in NOT_HERE for changes in entry.values() for how in changes.values()
    )


def changed_pipeline(pipeline: Stages, locked: Stages) -> Iterator[Cause]:
    """What DVC does not see: what dvc.yaml no longer lists, or keeps from running; and, where the
    data are not here, what one stage has written since another read it.
    """
    wrote = {path: md5 for ran in locked.values() for path, md5 in md5s(ran, "outs").items()}
    for stage, ran in locked.items():
        for path, md5 in md5s(ran, "deps").items():
            if wrote.get(path, md5) != md5:
                yield stage, f"{path}: has been written anew since the stage ran"
    for stage, before in locked.items():
        now = pipeline.get(stage)
        if now is None:
            yield stage, "is in dvc.lock, and no longer in dvc.yaml: take its entry out there"
            continue
        if now.get("frozen"):
            yield stage, f"is frozen: `dvc repro` passes it over: `dvc unfreeze {stage}`"
        for kind, what in (("deps", "a dependency"), ("outs", "an output")):
            entries = [one for key in (kind, "metrics", "plots") for one in now.get(key, [])]
            listed = set(map(name_of, entries))
            for path in md5s(before, kind):
                if path not in listed:
                    yield stage, f"{path}: was {what} when the stage ran, is none in dvc.yaml now"
        for key in before.get("params", {}).get(str(PARAMS_FILE), {}):
            if key not in keys_of(now) and "wdir" not in now:
                yield stage, f"{key}: was a parameter when the stage ran, is none in dvc.yaml now"


def unseen_parts(pipeline: Stages, params: Params) -> Iterator[Cause]:
    """The sources of parts of one's own that a stage uses and does not depend on."""
    values = params.model_dump()
    for stage, listed in pipeline.items():
        if stage not in code.CALL_PARTS:
            continue
        names = parts.named([value_at(values, key) for key in keys_of(listed)])
        deps = map(name_of, listed.get("deps", []))
        yield from ((stage, line) for line in parts.unseen(names, stage, deps))


def left_out(pipeline: Stages, content: Any) -> list[str]:
    """The keys that stages depend on, and that ``params.yaml`` does not hold."""
    keys = dict.fromkeys(key for listed in pipeline.values() for key in keys_of(listed))
    return [key for key in keys if value_at(content, key) == ABSENT]


def keys_of(stage: dict[str, Any]) -> list[str]:
    """The keys of the project's ``params.yaml`` that a stage in dvc.yaml lists."""
    if "wdir" in stage:
        return []  # of another folder's
    ours, entries = PARAMS_FILE.name, stage.get("params") or []
    listed = (entry if isinstance(entry, dict) else {ours: [entry]} for entry in entries)
    here = (section[ours] for section in listed if ours in section)
    return [key for keys in here for key in keys or Params.model_fields]  # none: the whole file


def name_of(entry: Any) -> str:
    """Of a dependency or output in dvc.yaml: it may have options."""
    return str(next(iter(entry))) if isinstance(entry, dict) else str(entry)


def status(deep: bool) -> dict[str, list[Any]]:
    """What ``dvc status --json`` prints, ``deep``: all hashed anew; LotteryError if it fails."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with tempfile.TemporaryDirectory(prefix="lottery-check-") as empty:
        try:
            with Repo(config={"core": {"site_cache_dir": empty}} if deep else None) as repo:
                return dict(repo.status())
        except DvcException as error:
            raise LotteryError(f"dvc status failed: {error}") from None


def causes(params: Params, pipeline: Stages, locked: Stages, *, deep: bool) -> Iterator[Cause]:
    """All that is not as ``dvc.lock`` has it. Says what cannot be told. Raises LotteryError."""
    source, unknown = local(params.data.source), [str(OWN)]
    if source and not source.exists():
        unknown += covering(source, map(name_of, pipeline["fetch"].get("deps", [])))
        print(f"fetch: data.source: {source} is not here, so not compared", file=sys.stderr)
    elif source and covering(source, unknown):
        unknown = []
    elif parts.is_own(params.data.name):  # its files are to lie there
        if {path.name for path in OWN.glob("*")} - {"README.md"}:
            unknown = []
        else:
            print(f"fetch: {OWN} is empty here, so not compared", file=sys.stderr)
    for listed in pipeline.values():
        inputs(path for path in map(name_of, listed.get("deps", [])) if Path(path).is_dir())
    for stage, cause in changed_files(status(deep), locked, read_yaml(PARAMS_FILE)):
        if cause.partition(": ")[0] not in unknown:
            yield stage, cause
    yield from changed_pipeline(pipeline, locked)
    yield from unseen_parts(pipeline, params)
    changed, line = asked_again(params.data)
    if changed:
        yield "fetch", line
    elif line:
        print(f"fetch: {line}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery check``. Raises LotteryError."""
    parser = argparse.ArgumentParser(prog="python -m lottery check", description=__doc__)
    add = partial(parser.add_argument, action="store_true")
    add("--params", help="only params.yaml, and files of DVC's that are cut off, before it runs")
    add("--deep", help="hash all files, even of unchanged size and time")
    options = parser.parse_args(arguments)
    if options.params:
        mend()
    params = load()
    check_seen(params.data)
    # read now: of a merge, they may hold marks of conflicts
    pipeline, _ = stages_of(PIPELINE), stages_of(LOCK)
    if lacking := left_out(pipeline or {}, read_yaml(PARAMS_FILE)):
        raise LotteryError(
            f"params.yaml: {', '.join(lacking)}: left out, but dvc.yaml names them, and DVC knows "
            "no defaults: write them out"
        )
    if not options.params:
        results_of(params, deep=options.deep)
        tables = (folder / "results.csv" for folder in (PAPER, REPORTS))
        if PAPER.exists() and len({path.exists() and path.read_bytes() for path in tables}) > 1:
            raise LotteryError(
                f"{PAPER}: of other results: `python -m lottery paper` makes it anew"
            )
        print("dvc.lock and reports/ belong to the parameters and the code")


def results_of(params: Params, *, deep: bool = False) -> None:
    """Prints a line for each cause and raises LotteryError, where the results here are not those of
    the parameters and the code.
    """
    pipeline, locked = stages_of(PIPELINE), stages_of(LOCK)
    advice = f"`dvc repro`, then commit {LOCK} and reports/"
    if pipeline is None:
        raise LotteryError(f"no {PIPELINE} here: run it in the top folder of the project")
    if locked is None:
        raise LotteryError(f"no {LOCK} here: the pipeline has not run: {advice}")
    reasons = dict.fromkeys(causes(params, pipeline, locked, deep=deep))
    for stage, cause in reasons:
        print(f"{stage}: {cause}")
    if reasons:
        stages = dict.fromkeys(stage for stage, _ in reasons)
        raise LotteryError(f"out of date: {', '.join(stages)}: {advice}")
