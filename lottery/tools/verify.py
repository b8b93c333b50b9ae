"""Whether the committed results come out again: ``python -m lottery verify``.

Computes everything anew in a clean clone of the last commit, in a temporary folder with an empty
run store and cache, then compares what git tracks there: dvc.lock, which has the hash of every
artifact, and reports/. What is not committed is no part of it; downloaded datasets come from the
usual cache. Exits with 1 where anything differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from lottery.datasets.sources import OWN
from lottery.tools.dvc_files import md5s

METRICS = "reports/metrics.json"
LOCK = "dvc.lock"


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery verify``: reproduces the last commit's results and compares."""
    parser = argparse.ArgumentParser(prog="python -m lottery verify", description=__doc__)
    parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="lottery-verify-") as folder:
            project = reproduced(Path(folder))
            lines = list(differences(project))
            if not lines:  # what no stage makes any more cannot differ
                check = [sys.executable, "-m", "lottery", "check"]
                subprocess.run(check, cwd=project, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        why = f"verify: {' '.join(error.cmd)}: exit status {error.returncode}\n"
        parser.exit(1, f"{error.stdout or ''}{error.stderr or ''}{why}")
    if lines:
        parser.exit(1, "".join(f"{line}\n" for line in lines))
    print("reproduced bit for bit")


def reproduced(
    folder: Path, experiment: str = "", *targets: str, source: Path | None = None
) -> Path:
    """The project's folder in a clone of the last commit, with everything computed anew.

    ``experiment``: another params.yaml's content; ``targets``: the last stages, by default all;
    ``source``: a file or folder that is copied into ``data/own/``.
    """
    top, prefix = _git(Path.cwd(), "rev-parse", "--show-toplevel", "--show-prefix").split("\n")[:2]
    subprocess.run(["git", "clone", "-q", top, str(folder / "clone")], check=True)
    project = folder / "clone" / prefix
    if not (project / LOCK).exists():
        raise SystemExit("verify: no dvc.lock is committed: there are no results to reproduce")
    if experiment:
        (project / "params.yaml").write_text(experiment, encoding="utf-8")
    if source:
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, project / OWN / source.name)
    environment = {**os.environ, "LOTTERY_RUNS": str(folder / "runs")}
    for command in (
        [sys.executable, "-m", "lottery", "check", "--params"],
        ["dvc", "config", "--local", "cache.dir", str(folder / "cache")],
        ["dvc", "repro", "--force", "--no-run-cache", *targets],
    ):
        subprocess.run(command, cwd=project, env=environment, check=True)
    return project


def differences(project: Path) -> Iterator[str]:
    """A line for each thing that is not as it was committed."""
    changed = _git(project, "status", "--porcelain", "--no-renames", ".").splitlines()
    names = [line[3:] for line in changed]
    if any(name.endswith(LOCK) for name in names):
        before = YAML(typ="safe").load(_git(project, "show", f"HEAD:./{LOCK}"))["stages"]
        now = YAML(typ="safe").load((project / LOCK).read_text(encoding="utf-8"))["stages"]
        for stage in now:
            for part, what in (("deps", "reads another"), ("outs", "wrote another")):
                old, new = (md5s(stages.get(stage, {}), part) for stages in (before, now))
                yield from (f"{stage} {what} {path}" for path in new if new[path] != old.get(path))
            if now[stage].get("params") != before.get(stage, {}).get("params"):
                yield f"{stage} has other parameters: `python -m lottery check` says which"
    yield from (f"{name}: differs" for name in names)
    if any(name.endswith(METRICS) for name in names):
        before = json.loads(_git(project, "show", f"HEAD:./{METRICS}"))
        now = json.loads((project / METRICS).read_text(encoding="utf-8"))
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                yield f"  {key}: committed {before.get(key)}, now {now.get(key)}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
