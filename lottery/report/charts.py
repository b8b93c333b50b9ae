"""``reports/report.html``: the report in Markdown, with interactive plots and the anatomy of the masks."""

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from lottery.params import Params
from lottery.report import page
from lottery.report.figures import COLOURS, OWN_COLOUR
from lottery.report.text import in_order

Chart = dict[str, Any]


def write(
    text: str,
    params: Params,
    figures: Path,
    runs: pd.DataFrame,
    history: pd.DataFrame,
    masks: dict[str, pd.DataFrame],
    image_shape: list[int],
) -> str:
    """The page.

    Args:
        text: the content of ``reports/report.md``.
        figures: the folder of its static figures.
        runs: outcomes() of all runs.
        history: of the runs whose training curves are shown.
        masks: the tables of ``data/masks/`` by name: density, overlap, units, first_layer.
        image_shape: height, width, channels.
    """
    charts = {
        "accuracy": by_density(runs, "test_accuracy", "test accuracy at early stop", ".2%"),
        "early_stop": by_density(runs, "early_stop_iteration", "early-stop iteration", ",.0f"),
        "training_curves": training_curves(history),
        "density": by_layer(
            masks["density"], "weights_remaining", "weights remaining", ".1%", scale="log"
        ),
        "units": by_layer(
            masks["units"].assign(share=lambda t: t["dead"] / t["units"]),
            "share",
            "dead units",
            ".1%",
            scale="linear",
        ),
        "first_layer": first_layer(masks["first_layer"], image_shape),
    }
    if not masks["overlap"].empty:
        charts["overlap"] = overlap(masks["overlap"])
    body = page.from_markdown(text)
    for name in ("accuracy", "early_stop", "training_curves", "density"):
        place = re.compile(rf'<p><img src="figures/{name}\.svg" alt="([^"]*)" /></p>')
        static = rf'<img alt="\1" src="{_inline(figures / f"{name}.svg")}">'
        body = place.sub(page.chart(name, static), body)
    title = text.partition("\n")[0].removeprefix("# ")
    return page.page(title, body + _anatomy(charts, masks) + _reproduce(params), charts)


def _inline(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()


def _anatomy(charts: dict[str, Chart], masks: dict[str, pd.DataFrame]) -> str:
    units = masks["units"]
    last = units[units["round"] == units["round"].max()]
    dead = last.groupby("layer", sort=False)[["units", "dead"]].mean()
    rows = "".join(
        f"<tr><td>{html.escape(str(layer))}</td><td>{of['units']:.0f}</td><td>{of['dead']:.1f}</td></tr>"
        for layer, of in dead.iterrows()
    )
    parts = [
        "<h2>Anatomy of the masks</h2>",
        "<p>Dead units: neurons or filters of which no incoming weight survives, mean over seeds.</p>",
        page.chart("units"),
        f"<details><summary>after the last round, {int(units['round'].max())}</summary><div class='wide'><table><tr>"
        f"<th>layer</th><th>units</th><th>dead</th></tr>{rows}</table></div></details>",
        "<p>First layer: the share of each input's weights that survive, mean over seeds, units and channels; "
        "choose the round below.</p>",
        page.chart("first_layer"),
    ]
    if "overlap" in charts:
        parts += [
            "<p>Overlap of two seeds' masks: the share of the weights kept by either that both keep (Jaccard index), "
            "mean over pairs of seeds; dashed: what random masks with the same counts would share.</p>",
            page.chart("overlap"),
        ]
    return "\n".join(parts)


def _reproduce(params: Params) -> str:
    text = io.StringIO()
    YAML(typ="safe").dump(params.model_dump(exclude={"data": {"source"}}), text)
    return (
        "<h2>Parameters</h2><details><summary>params.yaml as it was read, defaults included</summary><pre>"
        f"{html.escape(text.getvalue())}</pre></details>"
        "<h2>How to reproduce it</h2><p>In a clone of the repository at the commit that holds this report:</p>"
        "<pre>make repro      # the environment, then the pipeline: dvc repro\nmake check      # whether results belong to "
        "parameters and code</pre>"
    )


# Charts: Vega-Lite 5


def _rows(table: pd.DataFrame) -> dict[str, Any]:
    """Inline data; six significant digits, no NaN."""
    plain = [
        {k: (float(f"{v:.6g}") if isinstance(v, float) else v) for k, v in row.items() if v == v}
        for row in table.to_dict("records")
    ]
    return {"values": plain}


def _colour(variants: list[str]) -> dict[str, Any]:
    colours = [COLOURS.get(v, OWN_COLOUR) for v in variants]
    return {
        "field": "variant",
        "type": "nominal",
        "title": None,
        "scale": {"domain": variants, "range": colours},
    }


def _densities(title: str = "weights remaining") -> dict[str, Any]:
    return {
        "field": "weights_remaining",
        "type": "quantitative",
        "title": title,
        "scale": {"type": "log", "reverse": True, "nice": False, "padding": 12},
        "axis": {"format": "~p", "tickCount": 6},
    }


def _picker(seeds: list[int]) -> Chart:
    """A menu that leaves the runs of one seed."""
    options = [None, *seeds]
    labels = ["all", *map(str, seeds)]
    menu = {"input": "select", "options": options, "labels": labels, "name": "seed "}
    return {
        "name": "chosen",
        "select": {"type": "point", "fields": ["seed"]},
        "bind": {"seed": menu},
    }


LEGEND = {
    "name": "shown",
    "select": {"type": "point", "fields": ["variant"], "toggle": "true"},
    "bind": "legend",
}


def _faded(visible: float, names: tuple[str, ...] = ("shown",)) -> dict[str, Any]:
    test = {"and": [{"param": name} for name in names]}
    return {"condition": {"test": test, "value": visible}, "value": 0.03}


def by_density(runs: pd.DataFrame, column: str, title: str, digits: str) -> Chart:
    """A column of outcomes() against weights remaining: range and mean over seeds, each run as a point; dense dashed."""
    tips = [
        {"field": "variant"},
        {"field": "seed"},
        {"field": "round"},
        {"field": "weights_remaining", "format": ".2%"},
        {"field": column, "format": digits, "title": title},
    ]
    y = {
        "field": column,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False},
        "axis": {"format": digits},
    }
    variants = sorted(set(runs["variant"]), key=in_order)
    tickets = {"filter": "datum.variant !== 'dense'"}
    mean = [
        {
            "aggregate": [{"op": "mean", "field": column, "as": column}],
            "groupby": ["variant", "weights_remaining"],
        }
    ]
    band = [
        {
            "aggregate": [
                {"op": "min", "field": column, "as": "low"},
                {"op": "max", "field": column, "as": "high"},
            ],
            "groupby": ["variant", "weights_remaining"],
        }
    ]
    colour = _colour(variants)
    return {
        "width": "container",
        "height": 300,
        "title": f"{title[:1].upper()}{title[1:]}",
        "data": _rows(runs[["seed", "variant", "round", "weights_remaining", column]]),
        "layer": [
            {
                "transform": [tickets, *band],
                "mark": {"type": "area"},
                "encoding": {
                    "x": _densities(),
                    "y": {"field": "low", "type": "quantitative", "title": title},
                    "y2": {"field": "high"},
                    "color": colour,
                    "opacity": _faded(0.12),
                },
            },
            {
                "transform": [tickets, *mean],
                "mark": {"type": "line"},
                "encoding": {"x": _densities(), "y": y, "color": colour, "opacity": _faded(1)},
            },
            {
                "transform": [{"filter": "datum.variant === 'dense'"}, *mean],
                "mark": {"type": "rule", "strokeDash": [5, 4]},
                "encoding": {"y": y, "color": colour, "opacity": _faded(1)},
            },
            {
                "params": [LEGEND, _picker(sorted(map(int, set(runs["seed"]))))],
                "mark": {"type": "point", "filled": True, "size": 45},
                "encoding": {
                    "x": _densities(),
                    "y": y,
                    "color": colour,
                    "tooltip": tips,
                    "opacity": _faded(0.75, ("shown", "chosen")),
                },
            },
        ],
    }


def training_curves(history: pd.DataFrame) -> Chart:
    """Test accuracy during training: a line a run, a colour a density."""
    table = history[
        ["seed", "variant", "round", "iteration", "weights_remaining", "test_accuracy"]
    ].copy()
    table["curve"] = [
        "dense" if v == "dense" else f"{v}, {w:.1%}"
        for v, w in zip(table["variant"], table["weights_remaining"], strict=True)
    ]
    curves = list(dict.fromkeys(table.sort_values("round")["curve"]))
    greys = ["#000000", "#440154", "#3b528b", "#21918c", "#5ec962", "#d8b000"][: len(curves)]
    shown = {
        "name": "shown",
        "select": {"type": "point", "fields": ["curve"], "toggle": "true"},
        "bind": "legend",
    }
    x = {"field": "iteration", "type": "quantitative"}
    colour = {
        "field": "curve",
        "type": "nominal",
        "title": None,
        "scale": {"domain": curves, "range": greys},
    }
    tips = [
        {"field": "curve"},
        {"field": "seed"},
        {"field": "iteration"},
        {"field": "test_accuracy", "format": ".2%", "title": "test accuracy"},
    ]
    y = {
        "field": "test_accuracy",
        "type": "quantitative",
        "title": "test accuracy",
        "scale": {
            "zero": False,
            "domainMin": max(0.0, float(table["test_accuracy"].quantile(0.15)) - 0.02),
            "clamp": True,
        },
        "axis": {"format": "%"},
    }
    return {
        "width": "container",
        "height": 300,
        "title": "Training curves: a line a run",
        "data": _rows(table.drop(columns=["variant", "weights_remaining"])),
        "layer": [
            {
                "params": [shown, _picker(sorted(map(int, set(table["seed"]))))],
                "mark": {"type": "line", "clip": True},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "detail": {"field": "seed"},
                    "opacity": _faded(0.7, ("shown", "chosen")),
                },
            },
            {
                "mark": {"type": "point", "size": 60, "opacity": 0, "clip": True},  # to hover over
                "encoding": {"x": x, "y": y, "tooltip": tips},
            },
        ],
    }


def by_layer(table: pd.DataFrame, column: str, title: str, digits: str, *, scale: str) -> Chart:
    """A column of a mask table by layer and round, mean over seeds."""
    means = table.groupby(["round", "layer"], sort=False)[column].mean().reset_index()
    layers = list(dict.fromkeys(means["layer"]))
    y: Chart = {"field": column, "type": "quantitative", "title": title, "axis": {"format": digits}}
    if scale == "log" and (means[column] > 0).all():
        y["scale"] = {"type": "log", "nice": False, "padding": 8}
        y["axis"]["tickCount"] = 6
    return {
        "width": "container",
        "height": 240,
        "title": f"{title[:1].upper()}{title[1:]} by layer and round",
        "data": _rows(means),
        "params": [
            {
                "name": "shown",
                "select": {"type": "point", "fields": ["layer"], "toggle": "true"},
                "bind": "legend",
            }
        ],
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {
                "field": "round",
                "type": "quantitative",
                "axis": {"tickMinStep": 1, "format": "d"},
            },
            "y": y,
            "color": {
                "field": "layer",
                "type": "nominal",
                "title": None,
                "scale": {"domain": layers, "scheme": "tableau10"},
            },
            "opacity": _faded(1),
            "tooltip": [
                {"field": "layer"},
                {"field": "round"},
                {"field": column, "format": digits, "title": title},
            ],
        },
    }


def overlap(table: pd.DataFrame) -> Chart:
    """Jaccard index between seeds by layer and round, and the one by chance, dashed."""
    means = (
        table.groupby(["round", "layer"], sort=False)[["jaccard", "jaccard_by_chance"]]
        .mean()
        .reset_index()
    )
    layers = list(dict.fromkeys(means["layer"]))
    x = {"field": "round", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"}}
    colour = {
        "field": "layer",
        "type": "nominal",
        "title": None,
        "scale": {"domain": layers, "scheme": "tableau10"},
    }
    tips = [
        {"field": "layer"},
        {"field": "round"},
        {"field": "jaccard", "format": ".3f"},
        {"field": "jaccard_by_chance", "format": ".3f", "title": "by chance"},
    ]

    def line(column: str, dash: list[int]) -> Chart:
        y = {"field": column, "type": "quantitative", "title": "Jaccard index"}
        return {
            "mark": {"type": "line", "point": not dash, "strokeDash": dash},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips, "opacity": _faded(1)},
        }

    shown = {
        "name": "shown",
        "select": {"type": "point", "fields": ["layer"], "toggle": "true"},
        "bind": "legend",
    }
    return {
        "width": "container",
        "height": 240,
        "title": "Overlap between seeds by layer and round",
        "data": _rows(means),
        "layer": [{"params": [shown], **line("jaccard", [])}, line("jaccard_by_chance", [4, 3])],
    }


def first_layer(table: pd.DataFrame, image_shape: list[int]) -> Chart:
    """Where the first layer's weights survive: in the image for a dense layer, in the kernel for a convolution."""
    inputs = int(table["input"].max()) + 1
    height, width, channels = image_shape
    if inputs != height * width * channels:  # a square kernel
        height = width = round((inputs / channels) ** 0.5)
    rounds = sorted(map(int, set(table["round"])))
    means = []
    for round_ in rounds:
        shares = (
            table.loc[table["round"] == round_].sort_values("input")["weights_remaining"].to_numpy()
        )
        shares = shares.reshape(height, width, -1).mean(axis=2)
        for (row, column), share in np.ndenumerate(shares):
            means.append(
                {"round": round_, "row": row, "column": column, "share": float(f"{share:.3g}")}
            )
    slider = {"input": "range", "min": rounds[0], "max": rounds[-1], "step": 1, "name": "round "}
    cell = {"type": "ordinal", "axis": None}
    return {
        "width": 280,
        "height": 280 * height // width,
        "title": "Weights remaining by input of the first layer",
        "data": {"values": means},
        "params": [{"name": "chosen", "value": rounds[-1], "bind": slider}],
        "transform": [{"filter": "datum.round === chosen"}],
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "column", **cell},
            "y": {"field": "row", **cell},
            "color": {
                "field": "share",
                "type": "quantitative",
                "title": "weights remaining",
                "legend": {"format": "%", "orient": "right"},
                "scale": {"scheme": "viridis"},
            },
            "tooltip": [
                {"field": "row"},
                {"field": "column"},
                {"field": "share", "format": ".1%", "title": "weights remaining"},
            ],
        },
    }
