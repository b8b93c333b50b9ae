"""Accuracy and stability of tickets against the iteration that they are rewound to.

    python -m benchmarks.rewinding FOLDER [--experiment digits-resnet20] [--iterations 0 10 25 50 100 200]

Queues one DVC experiment for each rewind iteration, in a clone in FOLDER, and runs the queue; started
again, it goes on. Writes docs/results/rewinding/{rewinding.csv,rewinding.png,rewinding.svg} and prints
the table: what Frankle et al. 2020 show in figures 3 and 5, for one sparsity.
"""

import argparse
import io
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dvc.api
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from lottery.artifacts import files, tables
from lottery.params import load
from lottery.report import figures, outcomes

OUT = Path("docs/results/rewinding")
STABILITY = str(files.RETRAINED / "stability.csv")


def main() -> None:
    """Runs the queue, and draws."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experiment", default="digits-resnet20")
    parser.add_argument("--iterations", type=int, nargs="+", default=[0, 10, 25, 50, 100, 200])
    options = parser.parse_args()
    compute(options.folder, options.experiment, options.iterations)
    found = pd.concat([read(options.folder, iteration) for iteration in options.iterations])
    OUT.mkdir(parents=True, exist_ok=True)
    tables.write_table(OUT / "rewinding.csv", found)
    figures.save(lambda: draw(found), OUT / "rewinding")
    print(table(found))


def name_of(iteration: int) -> str:
    """What DVC calls the experiment."""
    return f"rewound-to-{iteration}"


def compute(folder: Path, experiment: str, iterations: list[int]) -> None:
    """Queues what has no result yet, and runs it."""

    def run(*command: str) -> str:
        """The output of a command in the clone."""
        env = {**os.environ, "LOTTERY_RUNS": str(folder.absolute() / ".runs")}
        done = subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE)
        return done.stdout.decode()

    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
        shutil.copy(folder / "experiments" / f"{experiment}.yaml", folder / "params.yaml")
        run("git", "commit", "--quiet", "--all", "--message", f"{experiment}.yaml")
    of = run("git", "show", "HEAD:params.yaml")
    if of != Path(f"experiments/{experiment}.yaml").read_text(encoding="utf-8"):
        raise SystemExit(f"{folder}: of another experiment; give another folder")
    known = run("dvc", "exp", "list", "--name-only").split()
    run("dvc", "queue", "remove", "--all")
    for iteration in iterations:
        if name_of(iteration) not in known:
            changed = f"prune.rewind_iteration={iteration}"
            run(
                "dvc", "exp", "run", "--queue", "--name", name_of(iteration), "--set-param", changed
            )
    run("dvc", "exp", "run", "--run-all")


def read(folder: Path, iteration: int) -> pd.DataFrame:
    """``rewind_iteration, round, seed, weights_remaining, dense_accuracy, ticket_accuracy,
    instability`` of an experiment; round 0 is the dense network."""
    params = load(folder / "params.yaml")

    def of(path: str) -> pd.DataFrame:
        """A table of the experiment."""
        text = dvc.api.read(path, repo=str(folder), rev=name_of(iteration))
        return pd.read_csv(io.StringIO(text))

    history = pd.concat([of(f"data/{stage}/history.csv") for stage in ("dense", "retrained")])
    runs = outcomes.outcomes(history, chance=0.1, stopping=params.train.early_stopping)
    accuracy = runs.pivot_table("final_test_accuracy", ["round", "seed"], "variant")
    found = outcomes.instabilities(of(STABILITY)).set_index(["round", "seed"])
    found = found.join(accuracy["ticket"].rename("ticket_accuracy"))
    dense = accuracy["dense"].dropna().droplevel("round").rename("dense_accuracy")
    found = found.join(dense, on="seed").drop(columns=["between", "barrier"]).reset_index()
    found.insert(0, "rewind_iteration", iteration)
    return found


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Mean, smallest and largest over seeds, in percentage points, by rewind iteration and round."""
    gain = found["ticket_accuracy"] - found["dense_accuracy"]
    values = {"gain": 100 * gain, "instability": 100 * found["instability"]}
    keys = [found["rewind_iteration"], found["round"]]
    return pd.DataFrame(values).groupby(keys).agg(["mean", "min", "max"])


def draw(found: pd.DataFrame) -> Figure:
    """Ticket minus dense above, instability of both below, against the rewind iteration."""
    figure, axes = plt.subplots(2, sharex=True, figsize=(7, 5))
    numbers = summary(found)
    names = {0: ("dense network", "#767676"), found["round"].max(): ("ticket", "#0072B2")}
    for number, (label, colour) in names.items():
        rows = numbers.xs(number, level="round")
        for axis, column in zip(axes, ("gain", "instability"), strict=True):
            of = rows[column].dropna()
            if len(of):
                spread = [of["mean"] - of["min"], of["max"] - of["mean"]]
                look: Any = {"color": colour, "marker": "o", "label": label, "capsize": 2}
                axis.errorbar(of.index, of["mean"], spread, **look)
    axes[0].axhline(0, color="#767676", linestyle="--")
    axes[0].set_ylabel("ticket − dense,\naccuracy (points)")
    axes[1].axhline(2, color="#767676", linestyle=":")
    axes[1].set(xlabel="rewind iteration", ylabel="instability (points)")
    axes[1].set_xscale("symlog", linthresh=10)
    axes[1].set_xlim(left=-2)
    ticks = numbers.index.unique("rewind_iteration")
    axes[1].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[1].legend()
    remaining = found.loc[found["round"] > 0, "weights_remaining"].mean()
    seeds = found["seed"].nunique()
    axes[0].set_title(
        f"Tickets of {remaining:.1%} of the weights; mean and range over {seeds} seeds"
    )
    return figure


def table(found: pd.DataFrame) -> str:
    """One row a rewind iteration, in Markdown."""
    numbers = summary(found)
    rows = []
    for iteration in numbers.index.unique("rewind_iteration"):
        row = {"rewound to": str(iteration)}
        for number in numbers.loc[iteration].index:
            of = numbers.loc[(iteration, number)]
            name = "ticket" if number else "dense network"
            for column, label in (("gain", "− dense (points)"), ("instability", "instability")):
                if number or column == "instability":
                    mean, low, high = of[column]
                    row[f"{name}, {label}"] = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    return str(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
