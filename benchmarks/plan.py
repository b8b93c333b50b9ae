"""Predicted against measured wall time of a small real experiment, with 1 and with 2 workers.

    python -m benchmarks.plan

For each number of workers, in a fresh clone: `python -m lottery plan --measure`, `dvc repro`, and the first once more.
Prints a Markdown table by stage. Exits with 1 where the prediction made before is off by more than 25 %, with 2 where it is and the
one made afterwards differs as much: then the machine has changed its speed, so leave it alone and try again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import ROOT, make_clone

from benchmarks.pipeline import stage_times
from lottery import params
from lottery.tools import costs
from lottery.tools.plan import images_of
from lottery.tools.workload import plan

ALLOWED = 0.25
CHANGES = {
    "seeds": [0, 1, 2],
    "prune.rounds": 4,
    "retrain.rounds": "all",
}  # of the default experiment: 51 runs


def compare(workers: int) -> tuple[float, float, float]:
    """Seconds as predicted, as measured, and as predicted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder) / "clone")
        (clone.path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        for key, value in CHANGES.items():
            clone.change(key, value)
        experiment = params.load(clone.path / "params.yaml")
        planned = plan(experiment, images_of(experiment))
        clone.environment = {"LOTTERY_WORKERS": str(workers), "PYTHONUNBUFFERED": "1"}

        def predict() -> dict[str, float]:
            clone.run("python", "-m", "lottery", "plan", "--measure")
            (kept,) = (clone.path / ".runs").glob("plan-*.json")
            machine = costs.read(kept)
            held_out = planned.images.held_out
            stages = {
                s.name: machine.stage + s.wall_seconds(machine, workers, held_out)
                for s in planned.stages
            }
            return {**stages, "all": planned.wall_seconds(machine, workers)}

        before = predict()
        began = time.perf_counter()
        measured = stage_times(clone.path, clone.env())
        measured["all"] = time.perf_counter() - began
        after = predict()
    for name in before:
        off = before[name] / measured[name] - 1
        cells = f"{before[name]:.1f} | {measured[name]:.1f} | {off:+.0%} | {after[name]:.1f}"
        print(f"| {workers} | {name} | {cells} |", flush=True)
    return before["all"], measured["all"], after["all"]


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("| workers | stage | predicted (s) | measured (s) | off by | predicted afterwards (s) |")
    print("|--:|---|--:|--:|--:|--:|", flush=True)
    found = [compare(workers) for workers in (1, 2)]
    wrong = [
        (before, measured, after)
        for before, measured, after in found
        if abs(before / measured - 1) > ALLOWED
    ]
    if wrong:
        print(f"off by more than {ALLOWED:.0%}", file=sys.stderr)
        unsteady = all(abs(before / after - 1) > ALLOWED for before, _, after in wrong)
        sys.exit(2 if unsteady else 1)


if __name__ == "__main__":
    main()
