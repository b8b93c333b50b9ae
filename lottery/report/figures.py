"""matplotlib figures: the same colour for a variant everywhere, spread as a band, dense as a dashed line."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from lottery.artifacts import files

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

# Okabe & Ito's palette, told apart by the colour-blind; the markers tell it in grey.
COLOURS = {
    "dense": "#000000",
    "ticket": "#0072B2",
    "random_reinit": "#D55E00",
    "sign_preserving_reinit": "#E69F00",
    "random_sign_constant": "#882255",
    "signed_reinit": "#332288",
    "random_mask": "#009E73",
    "random_mask_global": "#56B4E9",
    "shuffled_mask": "#CC79A7",
    "small_dense": "#7F5F00",
    "dense_longer": "#5B5B5B",
}
OWN_COLOUR = "#999999"  # of variants of one's own
MARKERS = {
    "ticket": "o",
    "random_reinit": "s",
    "sign_preserving_reinit": "D",
    "random_sign_constant": "d",
    "signed_reinit": "h",
    "random_mask": "^",
    "random_mask_global": "v",
    "shuffled_mask": "X",
    "small_dense": "p",
    "dense_longer": "*",
}
LABELS = {
    "dense": "dense network",
    "ticket": "ticket",
    "random_reinit": "random re-initialisation",
    "sign_preserving_reinit": "constants, signs kept",
    "random_sign_constant": "constants, random signs",
    "signed_reinit": "re-initialisation, signs kept",
    "random_mask": "random mask",
    "random_mask_global": "random mask, all layers together",
    "shuffled_mask": "shuffled mask",
    "small_dense": "small dense network",
    "dense_longer": "dense network, trained longer",
}
STYLE: Any = {
    "figure.figsize": (7.0, 4.3),
    "figure.dpi": 120,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "lottery",  # the same bytes each time
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Writes ``path`` with the endings .svg and .png; the same figure gives the same bytes."""
    for ending, metadata in ((".svg", {"Date": None}), (".png", {"Software": None})):
        buffer = io.BytesIO()
        with plt.rc_context(STYLE):
            figure.savefig(buffer, format=ending[1:], metadata=metadata)
        files.write(path.with_suffix(ending), buffer.getvalue())
    plt.close(figure)


def all_of(plots: dict[str, pd.DataFrame], title: str, seeds: int) -> Iterator[tuple[str, Figure]]:
    """The figures of ``plots()`` by name, one at a time."""
    yield (
        "accuracy",
        against_weights_remaining(
            plots["accuracy"],
            "test accuracy at early stop",
            f"Test accuracy: {title}",
            percent=True,
        ),
    )
    yield (
        "early_stop",
        against_weights_remaining(
            plots["early_stop"],
            "early-stop iteration",
            f"Early-stop iteration (lowest validation loss): {title}",
            percent=False,
        ),
    )
    yield "training_curves", training_curves(plots["training_curves"], seeds)
    yield "density", density_map(plots["density"])


def against_weights_remaining(
    table: pd.DataFrame, ylabel: str, title: str, *, percent: bool
) -> Figure:
    """by_round() of a column: mean and min-max band for each variant, the dense network dashed."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        dense = table[table["variant"] == "dense"].iloc[0]
        axes.axhline(
            dense["mean"],
            color=COLOURS["dense"],
            linestyle="--",
            linewidth=1.2,
            label=LABELS["dense"],
        )
        axes.axhspan(dense["min"], dense["max"], color=COLOURS["dense"], alpha=0.08, linewidth=0)
        for variant in dict.fromkeys([*LABELS, *sorted(table["variant"])]):
            rows = table[(table["variant"] == variant) & (table["round"] > 0)].sort_values("round")
            if rows.empty:
                continue
            x = rows["weights_remaining"] * 100
            colour, label = COLOURS.get(variant, OWN_COLOUR), LABELS.get(variant, variant)
            axes.fill_between(x, rows["min"], rows["max"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, rows["mean"], color=colour, marker=MARKERS.get(variant, "P"), label=label)
        _weights_remaining_axis(axes, table["weights_remaining"])
        axes.set_ylabel(ylabel)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.set_title(
            f"{title}\nmean and range over {int(dense['n'])} seeds", loc="left", fontsize=10
        )
        axes.legend()
        return figure


def _weights_remaining_axis(axes: Axes, weights_remaining: pd.Series) -> None:
    """Logarithmic, from 100 % down, a tick at each density that the data has."""
    axes.set_xscale("log")
    axes.set_xlim(108, weights_remaining.min() * 100 / 1.08)
    ticks: list[float] = []
    for value in sorted({round(v * 100, 6) for v in weights_remaining} | {100.0}, reverse=True):
        if not ticks or ticks[-1] / value > 1.15:
            ticks.append(value)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("weights remaining (%, logarithmic)")


def training_curves(table: pd.DataFrame, seeds: int) -> Figure:
    """curves() of test accuracy: the dense network and some tickets, darker the denser."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots()
        rounds = sorted(table.loc[table["variant"] == "ticket", "round"].unique())
        shades = plt.get_cmap("viridis")(np.linspace(0.1, 0.9, max(len(rounds), 1)))
        lines = [("dense", 0, COLOURS["dense"], "--", LABELS["dense"])]
        for round_, shade in zip(rounds, shades, strict=False):
            rows = table[(table["variant"] == "ticket") & (table["round"] == round_)]
            lines.append(
                (
                    "ticket",
                    round_,
                    shade,
                    "-",
                    f"ticket, {rows['weights_remaining'].iloc[0]:.1%} of weights",
                )
            )
        for variant, round_, colour, dashes, label in lines:
            rows = table[(table["variant"] == variant) & (table["round"] == round_)]
            axes.fill_between(
                rows["iteration"], rows["min"], rows["max"], color=colour, alpha=0.12, linewidth=0
            )
            axes.plot(rows["iteration"], rows["mean"], color=colour, linestyle=dashes, label=label)
        later = table[table["iteration"] > 0]
        low, high = later["min"].quantile(0.02), later["max"].max()
        axes.set_ylim(low - 0.02 * (high - low), high + 0.05 * (high - low))
        axes.set_xlabel("iteration")
        axes.set_ylabel("test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.set_title(
            f"Test accuracy during training\nmean and range over {seeds} seeds",
            loc="left",
            fontsize=10,
        )
        axes.legend(loc="lower right")
        return figure


def density_map(table: pd.DataFrame) -> Figure:
    """Weights remaining by layer and round: ``round, layer, weights_remaining``, mean over seeds."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        grid = (
            table.pivot(index="layer", columns="round", values="weights_remaining").loc[
                table["layer"].unique()
            ]
            * 100
        )
        rounds, layers = len(grid.columns), len(grid.index)
        figure, axes = plt.subplots(figsize=(max(5.0, 1.8 + 0.62 * rounds), 1.4 + 0.5 * layers))
        norm = matplotlib.colors.LogNorm(min(grid.to_numpy().min(), 50), 100)
        image = axes.imshow(grid, cmap="cividis", norm=norm, aspect="auto")
        for i in range(layers):
            for j in range(rounds):
                value = grid.iat[i, j]
                colour = "black" if norm(value) > 0.55 else "white"
                axes.text(j, i, f"{value:.3g}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(rounds), [str(r) for r in grid.columns])
        axes.set_yticks(range(layers), list(grid.index))
        axes.set_xlabel("pruning round")
        axes.set_title(
            "Weights remaining in each layer (%), mean over seeds", loc="left", fontsize=10
        )
        bar = figure.colorbar(image, ax=axes, label="weights remaining (%)")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        bar.ax.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
        return figure
