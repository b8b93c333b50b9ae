"""What the finished runs of a long experiment say, paired by seed with its dense networks and tickets.

    python -m benchmarks.paired experiments/mnist-lenet.yaml docs/results/mnist-lenet/state

STATE is what benchmarks/long_run.py leaves; nothing is computed. Prints the tables of
docs/results/mnist-lenet: of the runs that are trained again, and of the search itself. Only variants
and rounds of which every seed has finished are listed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery import params
from lottery.params import Params
from lottery.params.catalogue import DATASETS
from lottery.report import outcomes
from lottery.report.statistics import median
from lottery.report.text import interval, table
from lottery.tickets import given

OTHERS = ("dense", "ticket")  # that runs are compared with


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("state", type=Path)
    options = parser.parse_args()
    loaded = params.load(options.experiment)
    runs = finished(loaded, options.state)
    for variants in (loaded.retrain.variants, ["pruning"]):
        found = pd.DataFrame(rows(runs, variants, loaded))
        for kind in found:
            shown = pd.DataFrame(list(found[kind])).replace("", np.nan).dropna(axis=1, how="all")
            print(f"{', '.join(variants)}: {kind}\n\n{table(shown.fillna(''))}\n")


def finished(loaded: Params, state: Path) -> pd.DataFrame:
    """Outcomes by variant, round and seed, of what every seed has finished."""
    histories = [pd.read_csv(state / f"seed-{seed}/history.csv.gz") for seed in loaded.seeds]
    history = pd.concat(histories)
    known = "weights_remaining" in history and history["weights_remaining"].notna().all()
    history = history if known else history.assign(weights_remaining=np.nan)
    chance = 1 / DATASETS[loaded.data.name].classes
    runs = outcomes.outcomes(history, chance=chance, stopping=loaded.train.early_stopping)
    seeds = runs.groupby(["variant", "round"])["seed"].transform("count")
    runs = runs[seeds == len(loaded.seeds)].set_index(["variant", "round", "seed"]).sort_index()
    for number in () if known else runs.index.get_level_values("round").unique():
        runs.loc[(slice(None), number), "weights_remaining"] = remaining(state, loaded, number)
    return runs


def remaining(state: Path, loaded: Params, number: int) -> float:
    """The share of the weights that a round keeps, mean over seeds."""
    if not number:
        return 1.0
    masks = [given.read_file(given.round_file(state, seed, number)) for seed in loaded.seeds]
    whole = [np.concatenate([keep.ravel() for keep in mask.values()]) for mask in masks]
    return float(np.mean(whole))


def rows(runs: pd.DataFrame, variants: list[str], loaded: Params) -> list[dict[str, Any]]:
    """One row a variant and round, the dense network first."""
    known = runs.index.droplevel("seed").unique()
    some = [(v, n) for n in sorted(known.levels[1]) for v in variants if (v, n) in known]
    return [row(runs, variant, number, loaded) for variant, number in [("dense", 0), *some]]


def row(runs: pd.DataFrame, variant: str, number: int, loaded: Params) -> dict[str, Any]:
    """The accuracy and the early stop of a variant at a round; medians with their intervals."""
    one, level = runs.loc[variant, number], loaded.report.confidence
    step = 1 / DATASETS[loaded.data.name].test

    def minus(other: pd.DataFrame) -> str:
        """Its accuracy above another's, and in how many seeds it is above."""
        values = (one["test_accuracy"] - other["test_accuracy"]).to_numpy()
        shown = interval(median(values, level, step), 100, "+")
        return f"{shown}, {(values > 0).sum()} of {len(values)}"

    def over(other: pd.DataFrame) -> str:
        """Its early stop over another's, and in how many seeds it is earlier."""
        stop = other["early_stop_iteration"]
        values = one["early_stop_iteration"].fillna(np.inf) / stop.fillna(np.inf)
        values = values.dropna().to_numpy()  # where neither learnt there is no ratio
        ratio = median(values, level, loaded.train.evaluate_every / stop.median())
        return f"{interval(ratio, 1, '')}, {(values < 1).sum()} of {len(values)}"

    others = {"dense": runs.loc["dense", 0]} if number else {}
    if variant not in ("dense", "pruning", "ticket"):
        others["ticket"] = runs.loc["ticket", number]
    accuracy, stop = 100 * one["test_accuracy"], one["early_stop_iteration"]
    named = {"": variant, "round": number, "weights": f"{one['weights_remaining'].mean():.2%}"}
    untrained = f"{100 * one['initial_test_accuracy'].mean():.1f}"
    return {
        "accuracy": {
            **named,
            "test (%)": f"{accuracy.mean():.2f}",
            **{f"− {o}, above": minus(others[o]) if o in others else "" for o in OTHERS},
        },
        "early stop": {
            **named,
            "untrained (%)": untrained,
            "early stop": f"{stop.mean():,.0f}",
            **{f"/ {o}, earlier": over(others[o]) if o in others else "" for o in OTHERS},
        },
    }


if __name__ == "__main__":
    main()
