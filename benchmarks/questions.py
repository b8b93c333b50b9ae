"""The default experiment under other values of its parameters: one question of the field each.

    python -m benchmarks.questions --out docs/results/questions

Every row is a whole pipeline with four seeds and eight rounds, its tickets of rounds 4 and 8 retrained with
their controls, in one temporary clone: what several have in common is computed once. Takes about three quarters of
an hour on 2 cores. Writes results.csv, stability.csv, rounds.csv and the figure of the controls, and prints the tables of index.md.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from clones import ROOT, Clone, make_clone

from lottery.artifacts import files, tables
from lottery.params import VARIANTS, load
from lottery.report import figures, outcomes

EQUAL = {"conv": 0.2, "dense": 0.2, "output": 0.2}  # what a global threshold needs
STEPS = {"iterations": [400, 600], "factor": 0.1}
AT_ONCE = {"prune.scope": "global", "prune.rates": EQUAL, "prune.schedule": "one_shot"}

QUESTIONS: dict[str, dict[str, Any]] = {
    "controls": {"retrain.variants": list(VARIANTS)},
    "stability of SGD": {"retrain.analysis": "linear_mode_connectivity"},
    "connectivity of pruning": {"retrain.analysis": "connectivity_of_pruning"},
    "rewinding to iteration 100": {"prune.rewind_iteration": 100},
    "learning-rate steps": {"train.learning_rate_steps": STEPS},
    "fine-tuning, with these steps": {
        "train.learning_rate_steps": STEPS,
        "prune.strategy": "finetune",
    },
    "learning-rate rewinding, with these steps": {
        "train.learning_rate_steps": STEPS,
        "prune.strategy": "learning_rate_rewind",
    },
    "one shot": {"prune.schedule": "one_shot"},
    "global": {"prune.scope": "global", "prune.rates": EQUAL},
    "uniform": {"prune.scope": "uniform", "prune.rates": EQUAL},
    "Erdős–Rényi-Kernel": {"prune.scope": "erk", "prune.rates": EQUAL},
    "magnitude increase": {"prune.criterion": "magnitude_increase"},
    "movement": {"prune.criterion": "movement"},
    "random": {"prune.criterion": "random"},
    "SNIP": {**AT_ONCE, "prune.criterion": "snip"},
    "GraSP": {**AT_ONCE, "prune.criterion": "grasp"},
    "GraSP, layer by layer in eight rounds": {"prune.criterion": "grasp"},
    "SynFlow, 100 scorings": {  # four rounds, each of which prunes as much as two of the eight
        "prune.criterion": "synflow",
        "prune.scope": "global",
        "prune.rates": {"conv": 0.36, "dense": 0.36, "output": 0.36},
        "prune.rounds": 4,
        "prune.scoring_rounds": 25,
        "retrain.rounds": [2, 4],
    },
    "dropout 0.2": {"model.dropout": 0.2},
    "half the width": {"model.width": 0.5},
    "warm-up over 100 iterations": {"train.warmup_iterations": 100},
}
"""What each row changes in params.yaml."""
IN_THE_TABLE = (
    "dense_longer",
    "random_mask_erk",
    "set",
    "rigl",
    "supermask",
    "supermask_signed_constant",
)
"""Variants that the figure of the controls, which is crowded, leaves to the table."""
LINES = {"stability of SGD": "stability.csv", "connectivity of pruning": "rounds.csv"}
"""Where the lines between networks are kept, of the questions that ask for them."""


def main() -> None:
    """Asks the questions, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        clone = make_clone(Path(folder))
        for name in options.only:
            ask(clone, QUESTIONS[name])
            runs = outcomes_of(clone)
            accuracy = outcomes.by_round(runs, "test_accuracy")
            accuracy["round"] *= 8 // QUESTIONS[name].get("prune.rounds", 8)  # by density
            stop = outcomes.by_round(runs, "early_stop_iteration")["mean"]
            found.append(accuracy.assign(early_stop_iteration=stop).assign(question=name))
            tables.write_table(options.out / "results.csv", pd.concat(found))
            print(f"{name}: done", file=sys.stderr, flush=True)
            if name == "controls":
                draw(accuracy, options.out / "controls")
            if name in LINES:
                lines = clone.path / files.RETRAINED / "stability.csv"
                shutil.copy(lines, options.out / LINES[name])
                found_lines = outcomes.instabilities(tables.read_table(lines))
                by_line = found_lines.groupby(["between", "round"])
                print(by_line[["instability", "barrier"]].agg(["mean", "min", "max"]))
    print(table(pd.concat(found)))


def ask(clone: Clone, changes: dict[str, Any]) -> None:
    """Runs the pipeline of a question, but for its report."""
    committed = (ROOT / "experiments" / "mnist5k-lenet.yaml").read_text()
    (clone.path / "params.yaml").write_text(committed)
    common = {
        "seeds": [0, 1, 2, 3],
        "retrain.rounds": [4, 8],
        "retrain.variants": ["ticket", "random_reinit"],
    }
    for key, value in {**common, **changes}.items():
        clone.change(key, value)
    subprocess.run(["dvc", "repro", "retrain"], cwd=clone.path, env=clone.env(), check=True)


def draw(accuracy: pd.DataFrame, path: Path) -> None:
    """The controls against weights remaining."""
    shown = accuracy[~accuracy["variant"].isin(IN_THE_TABLE)]
    title = "Test accuracy: LeNet-300-100, MNIST, 5,000 images"
    none = tables.read_table(ROOT / figures.ANCHORS).iloc[:0]
    figures.save(
        partial(
            figures.against_weights_remaining,
            shown,
            "test accuracy at early stop",
            title,
            none,
            percent=True,
        ),
        path,
    )


def outcomes_of(clone: Clone) -> pd.DataFrame:
    """One row a run."""
    history = [tables.read(clone.path / f / "history.csv") for f in (files.DENSE, files.RETRAINED)]
    stopping = load(clone.path / "params.yaml").train.early_stopping
    return outcomes.outcomes(pd.concat(history), chance=0.1, stopping=stopping)


def table(results: pd.DataFrame) -> str:
    """One row a question: the dense network, then tickets and re-initialised controls of rounds 4 and 8, in percent."""
    lines = [
        "| | dense | ticket, round 4 | ticket, round 8 | `random_reinit`, round 8 |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, of_question in results.groupby("question", sort=False):
        rows = of_question.set_index(["variant", "round"])
        cells = [
            f"{100 * r['mean']:.2f} [{100 * r['min']:.2f}, {100 * r['max']:.2f}]"
            for r in (
                rows.loc[k]
                for k in (("dense", 0), ("ticket", 4), ("ticket", 8), ("random_reinit", 8))
            )
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
