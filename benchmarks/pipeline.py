"""Where the time of the default experiment goes: each stage against its training time, and a repro with nothing to do.

    python -m benchmarks.pipeline

Runs `dvc repro` in a fresh clone. The training time of a stage is the sum of its runs' own times (as the run
store keeps them) over the number of workers: what the stage would take if nothing but training were to be done.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import ROOT, make_clone

from lottery import params
from lottery.running import store
from lottery.running.workers import worker_count


def stage_times(clone_path: Path, env: dict[str, str]) -> dict[str, float]:
    """Seconds from each stage's start to the next one's, DVC's own work included."""
    begun: list[tuple[str, float]] = []
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=clone_path, env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Running stage "):
            begun.append((line.split("'")[1], time.perf_counter()))
    if process.wait():
        raise SystemExit("dvc repro failed")
    ends = [t for _, t in begun[1:]] + [time.perf_counter()]
    return {name: end - start for (name, start), end in zip(begun, ends, strict=True)}


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder) / "clone")
        (clone.path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        env = {**clone.env(), "PYTHONUNBUFFERED": "1"}
        begun = time.perf_counter()
        seconds = stage_times(clone.path, env)
        total = time.perf_counter() - begun
        begun = time.perf_counter()
        clone.run("dvc", "repro")
        nothing = time.perf_counter() - begun
        workers = worker_count(params.load(ROOT / "params.yaml").train.threads)
        print(f"{workers} workers\n")
        print("| stage | seconds | training / workers | share |")
        print("|---|--:|--:|--:|")
        for name, wall in seconds.items():
            notes = list((clone.path / ".runs").glob(f"used-*-{name}.json"))
            if notes:
                runs = [
                    store.read_facts(clone.path / ".runs" / f"{f}{store.FINISHED}")
                    for f in json.loads(notes[0].read_text())["runs"]
                ]
                training = sum(facts["seconds"] for facts in runs if facts) / workers
                print(
                    f"| {name} ({len(runs)} runs) | {wall:.1f} | {training:.1f} | {training / wall:.2f} |"
                )
            else:
                print(f"| {name} | {wall:.1f} | | |")
        print(f"| all | {total:.1f} | | |\n\n`dvc repro` with nothing to do: {nothing:.1f} s")


if __name__ == "__main__":
    main()
