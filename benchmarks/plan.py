"""Predicted against measured wall time of a small real experiment, with 1 and with 2 workers.

    python -m benchmarks.plan

For each number of workers, in a fresh clone: `python -m lottery.plan --measure`, then `dvc repro`. Prints a Markdown
table by stage and exits with 1 where the whole is off by more than 25 %. A machine that others use changes its speed
between the two: leave it alone meanwhile.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import ROOT, make_clone

from benchmarks.pipeline import stage_times
from lottery import artifacts, params
from lottery.costs import Costs, Machine
from lottery.plan import images_of
from lottery.workload import plan

ALLOWED = 0.25
CHANGES = {"seeds": [0, 1, 2], "prune.rounds": 4, "retrain.rounds": "all"}  # of the default experiment: 51 runs


def compare(workers: int) -> tuple[float, float]:
    """Predicted and measured seconds."""
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder) / "clone")
        (clone.path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        for key, value in CHANGES.items():
            clone.change(key, value)
        env = {**clone.env(), "LOTTERY_WORKERS": str(workers), "PYTHONUNBUFFERED": "1"}
        began = time.perf_counter()
        clone.run("python", "-m", "lottery.plan", "--measure", LOTTERY_WORKERS=str(workers))
        measuring = time.perf_counter() - began
        (kept,) = (clone.path / ".runs").glob("plan-*.json")
        content = artifacts.read_json(kept)
        machine = Machine(**{**content, "costs": tuple(Costs(**one) for one in content["costs"])})
        experiment = params.load(clone.path / "params.yaml")
        planned = plan(experiment, images_of(experiment))
        predicted = {
            s.name: machine.stage + s.wall_seconds(machine, workers, planned.images.held_out) for s in planned.stages
        }
        began = time.perf_counter()
        measured = stage_times(clone.path, env)
        total = time.perf_counter() - began
    for name, seconds in predicted.items():
        print(f"| {workers} | {name} | {seconds:.1f} | {measured[name]:.1f} | {seconds / measured[name] - 1:+.0%} |")
    whole = planned.wall_seconds(machine, workers)
    print(f"| {workers} | all | {whole:.1f} | {total:.1f} | {whole / total - 1:+.0%} |", flush=True)
    print(f"(measuring took {measuring:.0f} s)", file=sys.stderr)
    return whole, total


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| workers | stage | predicted (s) | measured (s) | off by |")
    print("|--:|---|--:|--:|--:|", flush=True)
    off = max(abs(predicted / measured - 1) for predicted, measured in map(compare, (1, 2)))
    if off > ALLOWED:
        raise SystemExit(f"off by {off:.0%}, more than {ALLOWED:.0%}")


if __name__ == "__main__":
    main()
