"""``python -m lottery paper``: the present results as figures and a table for a paper.

Writes ``reports/paper/``: ``accuracy.pdf``, ``early_stop.pdf`` and, where such lines were computed,
``linear_mode_connectivity.pdf``, ``from_round_before.pdf`` and ``from_dense.pdf``, each a column
wide with its fonts embedded; ``results.tex``, a table for LaTeX's package booktabs; ``runs.csv``,
one row a run; ``results.csv``, the report's. Spread is the standard deviation over seeds.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lottery import params
from lottery.artifacts import files, tables
from lottery.report import figures, outcomes
from lottery.report.styles import STYLE, styles
from lottery.tools.check import PAPER, results_of

PDF = {".pdf": {"CreationDate": None}}
CONNECTIVITY = {
    "copies": "linear_mode_connectivity",
    "round before": "from_round_before",
    "dense": "from_dense",
}
LOOK = [
    *STYLE,
    {
        "figure.figsize": (3.25, 2.6),  # inches, a column wide
        "font.size": 8,
        "legend.fontsize": 6.5,
        "legend.columnspacing": 1,
        "lines.linewidth": 1,
        "lines.markersize": 3,
        "pdf.fonttype": 42,  # TrueType: publishers refuse Matplotlib's default, Type 3
    },
]


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery paper``: writes ``reports/paper/``."""
    parser = argparse.ArgumentParser(prog="python -m lottery paper", description=__doc__)
    parser.parse_args(arguments)
    loaded = params.load()
    results_of(loaded)
    of_stages = (files.DENSE, files.PRUNED, files.RETRAINED)
    history = pd.concat([tables.read(folder / "history.csv") for folder in of_stages])
    chance = outcomes.guess(files.read_json(files.DATASET / "dataset.json"))
    runs = outcomes.outcomes(history, chance=chance, stopping=loaded.train.early_stopping)
    lines = tables.read_table(files.RETRAINED / "stability.csv")
    write(PAPER, runs, lines, files.read(files.REPORTS / "results.csv"))
    print(f"paper: written to {PAPER}")


def write(path: Path, runs: pd.DataFrame, lines: pd.DataFrame, results: bytes) -> None:
    """Writes the folder whole.

    ``runs``: outcomes() of all stages; ``lines``: the content of ``stability.csv``; ``results``:
    that of ``results.csv``, a copy of which says what the folder is of.
    """
    with files.folder_written_whole(path) as folder:
        makers = {
            "accuracy": partial(_by_round, runs, "test_accuracy", "test accuracy (%)", 100),
            "early_stop": partial(_by_round, runs, "early_stop_iteration", "early-stop iteration"),
        }
        for between, rows in lines.groupby("between"):
            makers[CONNECTIVITY[between]] = partial(_connectivity, rows)
        for name, make in makers.items():
            figures.save(make, folder / name, LOOK, PDF)
        tables.write_table(folder / "runs.csv", runs)
        files.write(folder / "results.csv", results)
        files.write(folder / "results.tex", latex(runs).encode())


def _by_round(runs: pd.DataFrame, column: str, label: str, scale: float = 1) -> Figure:
    figure, axes = plt.subplots()
    runs = runs[runs["weights_remaining"] > 0]
    drawn = styles(runs["variant"])
    for place, (variant, style) in enumerate(drawn.items()):
        rows = runs[runs["variant"].isin([variant, *["dense"] * (variant == "ticket")])]
        shares, values = (rows.groupby("round")[n] for n in ("weights_remaining", column))
        mean, spread = scale * values.mean(), scale * values.std()
        x = 100 * shares.mean()
        if variant not in ("dense", "pruning"):  # beside each other, within 3 % of where they are
            x *= 1.012 ** ((place - len(drawn) / 2) * min(1, 4 / len(drawn)))
        look: Any = {"color": style.colour, "marker": style.marker, "label": style.label}
        width = 0.5 if variant == "pruning" else 1
        axes.errorbar(x, mean, spread, elinewidth=0.6, capsize=1.5, linewidth=width, **look)
        if variant == "dense":
            axes.axhline(mean.item(), color=style.colour, linestyle="--")
    figures.weights_remaining_axis(axes, outcomes.by_round(runs, column)["weights_remaining"], 1.5)
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _connectivity(lines: pd.DataFrame) -> Figure:
    """Test error on the lines to the networks of at most five rounds."""
    figure, axes = plt.subplots()
    shown = outcomes.spread_out(lines["round"].unique().tolist(), 5)
    for place, number in enumerate(shown):
        rows = lines[lines["round"] == number]
        error = (100 * (1 - rows["test_accuracy"])).groupby(rows["position"])
        mean, spread = error.mean(), error.std()
        share = f"{100 * rows['weights_remaining'].mean():.3g} %"
        colour = plt.get_cmap("cividis")(0.9 * place / max(len(shown) - 1, 1))
        axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        axes.plot(mean.index, mean, color=colour, label=share)
    axes.set(xlabel="position on the line", ylabel="test error (%)")
    figure.legend(loc="outside lower center", ncols=3, title="weights remaining")
    return figure


def latex(runs: pd.DataFrame) -> str:
    """A LaTeX table of means and standard deviations by variant and round.

    Early stops of runs that were cut off, or whose loss still fell when they ended, are lower
    bounds; runs that diverged have none, and count as guesses in the accuracies.
    """

    def cell(values: pd.Series, digits: int) -> str:
        """Mean and standard deviation, of the runs that have a value."""
        if (values := values.dropna()).empty:
            return "none"
        mean, spread = f"{values.mean():.{digits}f}", f"{values.std():.{digits}f}"
        return f"${mean} \\pm {spread}$" if len(values) > 1 else f"${mean}$"

    rows = [
        {
            "network": style.label,
            "round": number,
            r"weights (\%)": f"{100 * group['weights_remaining'].mean():.2f}",
            r"accuracy (\%)": cell(100 * group["test_accuracy"], 2),
            r"at the end (\%)": cell(100 * group["final_test_accuracy"], 2),
            "early stop": cell(group["early_stop_iteration"], 0),
            "cut off": int((group["censored"] | group["improving"]).sum()),
            "diverged": int(group["diverged"].sum()),
            "seeds": len(group),
        }
        for variant, style in styles(runs["variant"]).items()
        for number, group in runs[runs["variant"] == variant].groupby("round")
    ]
    table = pd.DataFrame(rows).style.hide(axis="index").format(subset="network", escape="latex")
    return str(table.to_latex(hrules=True, column_format="lrrrrrrrr"))
