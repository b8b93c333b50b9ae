"""Matplotlib figures."""

import io
from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from lottery.artifacts import files
from lottery.params import Model
from lottery.report.outcomes import curve_limits, of_tickets, spread_out
from lottery.report.styles import STYLE, STYLES, printable, styles
from lottery.report.text import alone

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, PercentFormatter

ANCHORS = Path("docs/results/anchors.csv")  # published results
BESIDE = 0.025  # of a logarithmic axis: what stands above two marks takes as much
PICTURES = {".svg": {"Date": None}, ".png": {"Software": None}}  # and no date of making


def write(
    path: Path, plots: dict[str, pd.DataFrame], title: str, anchors: pd.DataFrame
) -> dict[str, str]:
    """Writes the folder of figures of ``plots()``; gives those not drawn, and why not.

    Args:
        plots: with ``cost``, the content of ``results.csv``.
        title: of the experiment: the network and the data.
        anchors: fitting() published results.
    """
    title = printable(title)
    accuracy = ("test accuracy at early stop", f"Test accuracy: {title}", anchors)
    stop = ("early-stop iteration", f"Early-stop iteration: {title}", anchors)
    makers: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: against_weights_remaining(plots["accuracy"], *accuracy, percent=True),
        "early_stop": lambda: against_weights_remaining(plots["early_stop"], *stop, percent=False),
        "training_curves": lambda: training_curves(plots["training_curves"], title),
        "density": lambda: density_map(plots["density"]),
        "cost": lambda: against_cost(plots["cost"], title),
    }
    with files.folder_written_whole(path) as folder:
        _, failed = alone("figure", makers, lambda name: save(makers[name], folder / name))
    plt.close("all")
    return failed


def save(
    make: Callable[[], Figure],
    path: Path,
    style: Any = STYLE,
    endings: Mapping[str, dict[str, Any]] = PICTURES,
) -> None:
    """Writes ``path`` with each ending; the same figure gives the same bytes."""
    with plt.style.context(style):
        figure = make()
        for ending, metadata in endings.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending[1:], metadata=metadata)
            files.write(path.with_suffix(ending), buffer.getvalue())


def fitting(anchors: pd.DataFrame, model: Model, dataset: str) -> pd.DataFrame:
    """Published results of this network on these data, at known densities."""
    fits = (anchors["network"] == model.name) & (anchors["dataset"] == dataset)
    return anchors[fits & (anchors["density"] > 0) & (model.width == 1)]


def anchored(anchors: pd.DataFrame, dense: float, *, percent: bool) -> pd.DataFrame:
    """``label, density, value`` of published results, gains relative to this dense network."""
    gained = anchors["accuracy"].fillna(dense + anchors["gain"])
    value = gained if percent else dense * anchors["early_stop_ratio"]
    label = anchors["source"] + ", " + anchors["method"]
    return anchors.assign(label=label, value=value).dropna(subset="value")


def against_weights_remaining(
    table: pd.DataFrame, ylabel: str, title: str, anchors: pd.DataFrame, *, percent: bool
) -> Figure:
    """by_round() of a column: mean and range by variant, dense dashed, published ones hollow."""
    figure, axes = plt.subplots()
    table = table[table["weights_remaining"] > 0]
    first = table[table["variant"] == "dense"]
    dense, drawn_as = first.iloc[0], styles(table["variant"])
    handles = []
    for variant, (colour, marker, _, _) in drawn_as.items():
        rows = table[table["variant"] == variant].sort_values("round")
        if variant == "dense":
            handles.append(axes.axhline(dense["mean"], color=colour, linestyle="--"))
            axes.axhspan(dense["min"], dense["max"], color=colour, alpha=0.1, linewidth=0)
            continue
        if variant in ("ticket", "pruning"):
            rows = pd.concat([first, rows])
        x, mean, low, high = 100 * rows["weights_remaining"], rows["mean"], rows["min"], rows["max"]
        if variant == "pruning":
            handles += axes.plot(x, mean, color=colour, linewidth=0.7, alpha=0.7)
            continue
        if len(rows) == 1:
            axes.vlines(x, low, high, color=colour, linewidth=1.2)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        handles += axes.plot(x, mean, color=colour, marker=marker)
    labels = [style.label for style in drawn_as.values()]
    drawn = anchored(anchors, float(dense["mean"]), percent=percent)
    for marker, (label, rows) in zip(cycle("os^Dv*ph"), drawn.groupby("label", sort=False)):
        look: Any = {"color": "#333333", "marker": marker, "mfc": "none", "linestyle": ""}
        handles += axes.plot(rows["density"] * 100, rows["value"], **look)
        labels.append(printable(label))
    marked = table["variant"] != "pruning"
    shares = pd.concat([table[marked], table[~marked]])["weights_remaining"]
    weights_remaining_axis(axes, pd.concat([shares, drawn["density"]]))
    axes.set(ylabel=ylabel, title=f"{title}\nmean and range over {seeds_of(table)}")
    if percent:
        axes.set_ylim(*np.clip(axes.get_ylim(), -0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def seeds_of(table: pd.DataFrame) -> str:
    """How many there are, of the variant that has most: ``8 seeds``."""
    most = int(table["n"].max())
    return f"{most} seed{'s' * (most != 1)}"


def weights_remaining_axis(axes: Axes, weights_remaining: pd.Series, apart: float = 1.15) -> None:
    """Logarithmic, from 100 % down, a tick at each density that the data has, the first ones first,
    where there is room: about twelve, and so far apart."""
    lowest = float(weights_remaining.min())
    apart = max(apart, lowest ** (-1 / 11))
    axes.set(xscale="log", xlim=(108, lowest * 100 / 1.08))
    ticks = [100.0]
    for value in (round(100 * share, 6) for share in weights_remaining):
        if all(max(value / tick, tick / value) > apart for tick in ticks):
            ticks.append(value)
    ticks.sort(reverse=True)
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("weights remaining (%, logarithmic)")


def training_curves(table: pd.DataFrame, title: str) -> Figure:
    """curves() of test accuracy: a panel a round, with the dense network."""
    rounds = sorted(set(table.loc[table["round"] > 0, "round"])) or [0]
    lines = -(-len(rounds) // 2)
    shape = lines, min(len(rounds), 2)
    figure, panels = plt.subplots(*shape, squeeze=False, sharex=True, sharey=True)
    figure.set_size_inches(7.0, 1.2 + 2.6 * lines)
    drawn = styles(table["variant"])
    shares = of_tickets(table)
    for axes, number in zip(panels.flat, rounds, strict=False):
        for variant, (colour, *_) in drawn.items():
            which, dashes = (0, "--") if variant == "dense" else (number, "-")
            rows = table[(table["variant"] == variant) & (table["round"] == which)]
            x = rows["iteration"]
            axes.fill_between(x, rows["min"], rows["max"], color=colour, alpha=0.12, lw=0)
            axes.plot(x, rows["mean"], color=colour, linestyle=dashes)
        share = f": {shares[number]:.1%} of the weights" if number in shares else ""
        axes.set(xlabel="iteration", ylabel="test accuracy", title=f"round {number}{share}")
        axes.locator_params("x", nbins=4)  # five digits each
        axes.label_outer()
    for axes in panels.flat[len(rounds) :]:  # at most the last: the one above it has the labels
        axes.set_axis_off()
        panels[-2, -1].tick_params(labelbottom=True)
        panels[-2, -1].set_xlabel("iteration")
    panels[0, 0].set_ylim(*curve_limits(table))
    panels[0, 0].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(f"Training: {title}; mean and range over seeds", fontsize=10, ha="left", x=0.02)
    labels = [style.label for style in drawn.values()]
    figure.legend(panels[0, 0].lines, labels, loc="outside lower center", ncols=3)
    return figure


def density_map(table: pd.DataFrame) -> Figure:
    """Weights remaining by layer and round: ``round, layer, weights_remaining``."""
    layers = list(dict.fromkeys(table["layer"]))
    values = table.pivot(index="layer", columns="round", values="weights_remaining").loc[layers]
    grid = values.to_numpy() * 100
    height, width = grid.shape
    figure, axes = plt.subplots(figsize=(min(max(7, 2.5 + 0.6 * width), 40), 1.4 + 0.4 * height))
    axes.grid(visible=False)
    lowest = float(grid[grid > 0].min(initial=50))
    norm = LogNorm(lowest, 100)
    shown = axes.imshow(np.ma.masked_less_equal(grid, 0), cmap="cividis", norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value > 0 and norm(value) < 0.55 else "black"
        axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(width), [str(number) for number in values.columns])
    axes.set_yticks(range(height), [printable(str(layer), 30) for layer in layers])
    title = "Weights remaining in each layer (%), mean over seeds"
    axes.set(xlabel="pruning round", title=title)
    ticks = LogLocator(subs=(1, 2, 5)).tick_values(lowest, 100)
    bar = figure.colorbar(shown, label="weights remaining (%)", ticks=ticks, format="{x:g}")
    bar.minorticks_off()
    return figure


def against_cost(results: pd.DataFrame, title: str) -> Figure:
    """Accuracy against FLOPs: the dense network, tickets with and without what finds them."""
    figure, axes = plt.subplots()
    mean, low, high = (f"test_accuracy_{name}" for name in ("mean", "min", "max"))
    tickets = results[results["variant"] == "ticket"].sort_values("round")
    dense = results[results["variant"] == "dense"]
    together = tickets["finding_flops"] + tickets["training_flops"]
    costs = pd.concat([dense["training_flops"], tickets["training_flops"], together])
    apart = (costs.max() / costs.min()) ** BESIDE
    for rows, cost, (colour, marker, _, _), inside, label in (
        (dense, dense["training_flops"], STYLES["dense"], None, "dense network"),
        (tickets, tickets["training_flops"], STYLES["ticket"], "white", "ticket, its training"),
        (tickets, together, STYLES["ticket"], None, "ticket, found and trained"),
    ):
        axes.vlines(cost, rows[low], rows[high], color=colour, linewidth=0.7)
        axes.plot(cost, rows[mean], label=label, color=colour, marker=marker, mfc=inside)
        shown, named = spread_out(rows["round"].tolist(), 5), 0.0
        above: Any = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
        for x, (_, row) in zip(cost, rows.iterrows(), strict=True):
            if row["round"] in shown and not named / apart < x < named * apart:
                named = x
                share = f"{100 * row['weights_remaining']:.3g} %"
                axes.annotate(share, (x, row[high]), rotation=90, size=8, **above)
    axes.axhline(dense[mean].item(), color=STYLES["dense"].colour, linestyle="--", linewidth=1)
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.12 * (top - bottom))  # room for what stands above the marks
    axes.set(xscale="log", xlabel="FLOPs of training, zeros skipped (logarithmic)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    title = f"Accuracy against cost: {title}\nmean and range over {seeds_of(dense)}"
    axes.set(ylabel="test accuracy at early stop", title=title)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
