"""Vega-Lite charts through Altair, for report.html, compare.html and `dvc plots`.

Colours and markers are worked out in the chart, from styles.STYLES, so that those of one's own
variants, of which a committed template of DVC's cannot know, are drawn there too, and alike.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from lottery.report.outcomes import curve_limits, of_tickets
from lottery.report.styles import OWN_COLOURS, OWN_MARKERS, STYLES, styles

ANCHOR = "<DVC_METRIC_{}>".format
NUMBERS = ("round", "iteration", "weights_remaining", "mean", "min", "max", "n")
Labels = tuple[str, str, str]
"""A chart's title, and those of its axes."""
DVC_LABELS = (ANCHOR("TITLE"), ANCHOR("X_LABEL"), ANCHOR("Y_LABEL"))
BY_COLOUR = alt.Color("colour:N", scale=None)
SHADES = alt.SchemeParams(name="cividis", extent=[0.2, 1])  # the darkest is seen on black
PICKED = alt.selection_point("shown", fields=["variant"], toggle="true", bind="legend")


alt.data_transformers.disable_max_rows()


def data(table: pd.DataFrame | None) -> Any:
    """A chart's data, with six significant digits; None: DVC's, in which numbers are words."""
    if table is None:
        parse = alt.DataFormat(parse=dict.fromkeys(NUMBERS, "number"))
        return alt.InlineData(values=[], format=parse)
    numbers = table.select_dtypes("float")
    return table.assign(**numbers.map(lambda v: float(f"{v:.6g}")))


def styled(chart: Any) -> Any:
    """With the fields ``colour`` and ``marker`` of each variant; the data has the dense network."""
    known = {name: [style.colour, style.symbol] for name, style in STYLES.items()}
    own = f"({json.dumps(OWN_COLOURS)})[(datum.place - 2) % {len(OWN_COLOURS)}]"
    symbols = json.dumps([symbol for _, symbol in OWN_MARKERS])
    own_marker = f"({symbols})[(datum.place - 2) % {len(OWN_MARKERS)}]"
    chart = chart.transform_calculate(style=f"({json.dumps(known)})[datum.variant]")
    chart = chart.transform_calculate(own="datum.style ? '' : datum.variant")  # '' is first
    chart = chart.transform_window(place="dense_rank()", sort=[alt.SortField("own")], groupby=[])
    return chart.transform_calculate(
        colour=f"datum.style ? datum.style[0] : {own}",
        marker=f"datum.style ? datum.style[1] : {own_marker}",
    )


def _either(test: Any, yes: Any, no: Any) -> Any:
    return alt.when(test).then(alt.value(yes)).otherwise(alt.value(no))


def _opacity(visible: float) -> Any:
    return _either(PICKED, visible, 0.04)


def _sized(chart: Any, title: str, height: float = 300) -> Any:
    return chart.properties(title=title, width="container", height=height)


def _legend(channel: Any, field: str, table: pd.DataFrame | None) -> Any:
    """Of a table each variant has its own entry: Vega drops equal ones of a field's values."""
    scale = alt.Scale(range=alt.FieldRange(field=field))
    if table is not None:
        known = {v: s for v, s in styles(table["variant"]).items() if v != "pruning"}
        looks = [s.colour if field == "colour" else s.symbol for s in known.values()]
        scale = alt.Scale(domain=list(known), range=looks)
    return channel("variant:N", title=None, scale=scale)


def _revisions(names: Sequence[str]) -> Any:
    """Dashes by revision, in this order; by name where none is given."""
    scale = alt.Scale(domain=list(names)) if names else alt.Undefined
    look = alt.Legend(symbolFillColor="transparent", symbolType="stroke")
    return alt.StrokeDash("rev:N", title="revision", legend=look, scale=scale)


def by_density(
    table: pd.DataFrame | None, labels: Labels, digits: str, revisions: Sequence[str] | None = None
) -> Any:
    """Means and range against weights remaining, tickets joined to the dense network at 100 %.

    Args:
        table: by_round(), with the column ``rev`` where there are revisions; None: DVC's.
        digits: the format of values.
        revisions: told apart by dashes; empty: those in the data.
    """
    log = alt.Scale(type="log", reverse=True, nice=False, padding=12, domainMax=1)
    x = alt.X("weights_remaining:Q", title=labels[1], scale=log).axis(format="~p", tickCount=6)
    y = alt.Y("mean:Q", title=labels[2], scale=alt.Scale(zero=False)).axis(format=digits)
    low, high = alt.Y("min:Q"), alt.Y2("max:Q")
    dash: Any = alt.Undefined
    detail, dashed = ["variant:N"], [5, 4]
    tips = ["variant:N", "round:Q", alt.Tooltip("weights_remaining:Q", format=".2%"), "n:Q"]
    tips += [alt.Tooltip(f"{name}:Q", format=digits) for name in ("mean", "min", "max")]
    if revisions is not None:
        dash, dashed = _revisions(revisions), [1, 0]
        detail, tips = [*detail, "rev:N"], ["rev:N", *tips]
    rows = alt.Chart().encode(color=BY_COLOUR)  # but for points, which have fill and outline
    dense = rows.transform_filter("datum.variant === 'dense'")
    joined = rows.encode(x=x, detail=detail).transform_calculate(
        colour=f"datum.variant === 'dense' ? '{STYLES['ticket'].colour}' : datum.colour",
        variant="datum.variant === 'dense' ? 'ticket' : datum.variant",
    )
    marked = alt.Chart().encode(x=x).transform_filter("datum.variant !== 'pruning'")
    thin = _either("datum.variant === 'pruning'", 0.7, 1.6)
    points = marked.mark_point(filled=True, size=60, strokeWidth=1.5).encode(
        y=y,
        fill=_legend(alt.Fill, "colour", table),
        shape=_legend(alt.Shape, "marker", table),
        tooltip=tips,
        opacity=_opacity(1),
    )
    chart = alt.layer(
        joined.transform_filter("datum.variant !== 'pruning'")
        .mark_area()
        .encode(y=low, y2=high, opacity=_opacity(0.12)),
        dense.mark_rule(strokeDash=dashed).encode(y=y, strokeDash=dash, opacity=_opacity(1)),
        joined.mark_line().encode(y=y, strokeDash=dash, strokeWidth=thin, opacity=_opacity(1)),
        marked.mark_rule().encode(y=low, y2=high, color=BY_COLOUR, opacity=_opacity(0.5)),
        points.add_params(PICKED),
        data=data(table),
    )
    return _sized(styled(chart).transform_filter("datum.weights_remaining > 0"), labels[0])


def training_curves(table: pd.DataFrame | None, runs: pd.DataFrame | None = None) -> Any:
    """Means and range during training, of one round at a time beside the dense network.

    Args:
        table: curves(); None: DVC's, whose rounds are known by their place only.
        runs: the history from which the curves are, of which one seed is shown on demand.
    """
    limits: Any = alt.Undefined
    across: Any = alt.Undefined
    names, revision, labels = ["1st", "2nd", "3rd", "4th"], ["rev:N"], DVC_LABELS
    if table is not None:
        labels = ("Training curves", "iteration", "test accuracy")
        shares, rounds = of_tickets(table), sorted(set(table.loc[table["round"] > 0, "round"]))
        names = [f"{n} ({shares[n]:.1%})" if n in shares else str(n) for n in rounds] or ["none"]
        limits, revision = list(curve_limits(table)), []
        across = [0, max(map(int, table["iteration"]), default=1)]
    places = list(range(2, len(names) + 2))  # the first is the dense network's
    radio = alt.binding_radio(options=places, labels=names, name="round ")
    chosen = alt.param("chosen", value=places[0 if table is None else -1], bind=radio)

    def of_round(chart: Any) -> Any:
        """Only the rows of the chosen round and of the dense network."""
        by = [field.removesuffix(":N") for field in revision]
        chart = styled(chart).transform_window(
            nth="dense_rank()", sort=[alt.SortField("round")], groupby=by
        )
        return chart.transform_filter("datum.round == 0 || datum.nth == chosen")

    x = alt.X("iteration:Q", title=labels[1], scale=alt.Scale(domain=across, nice=False))
    rows = alt.Chart().mark_line(clip=True).encode(x, detail=["variant:N", "round:N", *revision])
    band = rows.mark_area(clip=True).encode(alt.Y("min:Q"), alt.Y2("max:Q"), color=BY_COLOUR)
    y = alt.Y("mean:Q", title=labels[2], scale=alt.Scale(zero=False, domain=limits))
    shares = [alt.Tooltip(f"{name}:Q", format=".2%") for name in ("weights_remaining", "mean")]
    line = rows.encode(
        y=y.axis(format="~%"),
        stroke=_legend(alt.Stroke, "colour", table),
        strokeDash=_revisions(()) if revision else alt.Undefined,
        tooltip=[*revision, "variant:N", "round:Q", "iteration:Q", *shares],
        opacity=_opacity(1),
    ).add_params(PICKED)
    chart = of_round(alt.layer(band.encode(opacity=_opacity(0.12)), line, data=data(table)))
    if table is None:
        chart = chart.transform_filter("datum.iteration > 0")
    if runs is not None:
        columns = ["seed", "variant", "round", "iteration", "test_accuracy"]
        seeds = sorted({int(seed) for seed in runs["seed"]})
        names = ["none", *map(str, seeds)]
        menu = alt.binding_select(options=[None, *seeds], labels=names, name="one seed, dotted ")
        dotted = rows.mark_line(clip=True, strokeDash=[2, 3])
        one = dotted.encode(y="test_accuracy:Q", color=BY_COLOUR)
        one = of_round(one.properties(data=data(runs[columns])))
        chart = alt.layer(chart, one.transform_filter("datum.seed === seed"))
        chart = chart.add_params(alt.param("seed", bind=menu))
    return _sized(chart.add_params(chosen), labels[0])


def by_layer(table: pd.DataFrame | None, title: str, digits: str, *, log: bool = False) -> Any:
    """A heat map of the column ``value`` by layer and round, with numbers where they fit: black on
    the brighter half of the scale, else white.
    """
    wide, x, y = "true", *DVC_LABELS[1:]
    if table is not None:
        wide, x, y = f"width > {30 * table['round'].nunique()}", "pruning round", "layer"
    middle = "sqrt(datum.low * datum.high)" if log else "(datum.low + datum.high) / 2"
    rows = alt.Chart().encode(
        x=alt.X("round:O", title=x).axis(labelAngle=0),
        y=alt.Y("layer:N", title=y, sort=None),
    )
    scale = alt.Scale(scheme=SHADES, type="log" if log else "linear")
    cells = rows.mark_rect().encode(
        color=alt.Color("value:Q", title=None, scale=scale).legend(format=digits),
        tooltip=["layer:N", "round:O", alt.Tooltip("value:Q", format=digits)],
    )
    words = rows.mark_text(fontSize=9).encode(
        text=alt.Text("value:Q", format=digits),
        color=_either(f"datum.value > {middle}", "black", "white"),
        opacity=_either(wide, 1, 0),
    )
    chart = alt.layer(cells, words, data=data(table))
    if table is None:
        chart = chart.transform_calculate(value="toNumber(datum.weights_remaining)")
    chart = chart.transform_joinaggregate(low="min(value)", high="max(value)")
    if table is None:
        return chart
    return _sized(chart, title, 30 + 24 * table["layer"].nunique())


def first_layer(table: pd.DataFrame, image_shape: Sequence[int]) -> Any:
    """Where the first layer's weights survive: in a dense layer's image, another's kernel."""
    inputs = int(table["input"].max()) + 1
    height, width, *depth = image_shape if len(image_shape) > 1 else (1, *image_shape)
    channels = math.prod(depth)
    if inputs != height * width * channels:  # a kernel: square, or else shown as a strip
        side = round((inputs / channels) ** 0.5)
        height, width = (side, side) if side * side * channels == inputs else (1, inputs)
        if len(image_shape) == 2:  # of steps and features: the kernel spans some steps
            height, width = inputs // image_shape[1], image_shape[1]
    place = table["input"] * height * width // inputs
    cells = table.assign(row=place // width, column=place % width)
    means = cells.groupby(["round", "row", "column"], as_index=False)["weights_remaining"].mean()
    rounds = [int(number) for number in sorted(set(means["round"]))]
    slider = alt.binding_range(min=rounds[0], max=rounds[-1], step=1, name="round ")
    share = alt.Color("weights_remaining:Q", title=None, scale=alt.Scale(scheme=SHADES))
    chart = alt.Chart(data(means)).mark_rect()
    chart = chart.encode(
        x=alt.X("column:O", axis=None),
        y=alt.Y("row:O", axis=None),
        color=share.legend(format=".0%"),
        tooltip=["row:O", "column:O", alt.Tooltip("weights_remaining:Q", format=".1%")],
    )
    chart = chart.add_params(alt.param("chosen", value=rounds[-1], bind=slider))
    chart = chart.transform_filter("datum.round == chosen")
    return chart.properties(width=280, height=min(max(280 * height // width, 20), 560))


def templates() -> dict[str, str]:
    """``.dvc/plots/*.json`` by name, with the anchors that DVC and its editors replace."""
    density = by_layer(None, "", ".3~p", log=True)
    charts = {
        "weights_remaining": by_density(None, DVC_LABELS, ".4~g", revisions=()),
        "training_curves": training_curves(None),
        "density": density.facet(column=alt.Column("rev:N", title=None)),
    }
    return {f"{name}.json": _with_anchors(chart) for name, chart in charts.items()}


def _with_anchors(chart: Any) -> str:
    spec = chart.to_dict()
    for name in ("config", "datasets"):
        spec.pop(name)
    spec["title"], spec["data"] = ANCHOR("TITLE"), {**spec["data"], "values": ANCHOR("DATA")}
    inner = spec.get("spec", spec)
    inner |= {"width": ANCHOR("PLOT_WIDTH"), "height": ANCHOR("PLOT_HEIGHT")}
    for layer in inner["layer"]:
        if layer["mark"]["type"] == "point":  # outlined in the colour of the revision
            layer["encoding"]["stroke"] = ANCHOR("COLOR")
    return json.dumps(spec, indent=1, ensure_ascii=False) + "\n"
