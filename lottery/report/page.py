"""Self-contained HTML pages with charts: offline, on a phone, in the dark, printed."""

import base64
import html
import io
import json
import re
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from ruamel.yaml import YAML

from lottery.artifacts import files
from lottery.params import Params
from lottery.report import charts
from lottery.report.text import alone, templates

DVC = Path(".dvc")
HINT = (
    "Click a legend entry to show only that, others to add them; double-click to show all. "
    "Hover for values."
)
THIN = " The thin line: while pruning, every round."


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script element; 0.9 MB."""
    import vl_convert  # takes a second: only what writes pages needs it

    # "</script" and "<!--" must not occur inside a script element
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return "<script>{}</script>".format(script.replace("</script", "<\\/script"))


def for_dvc() -> str:
    """``.dvc/plots.html``, the page of `dvc plots`, which asks the network for nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Plots</title>\n'
        f"{{refresh_tag}}\n{library()}\n</head>\n<body>\n{{plot_divs}}\n</body>\n</html>\n"
    )


def page(title: str, body: str, charts: dict[str, Any]) -> str:
    """The whole page.

    Args:
        body: HTML; each chart has a ``<div class="chart" id="…">``.
        charts: Vega-Lite specifications by id.
    """
    specs = json.dumps(charts, separators=(",", ":"), sort_keys=True).replace("<", "\\u003c")
    return _rendered("page.html.j2", title=title, body=body, library=library(), charts=specs)


def _rendered(template: str, **values: Any) -> str:
    return templates(autoescape=True).get_template(template).render(**values)


def chart(name: str, hint: str = "", static: str = "") -> str:
    """The place of a chart; ``static`` is HTML for print, folded up on the screen."""
    caption = f"<figcaption>{hint}</figcaption>" if hint else ""
    folded = f"<details><summary>as a static figure</summary>{static}</details>" if static else ""
    kind = ' class="drawn-twice"' if static else ""
    return f'<figure{kind}><div class="chart" id="{name}"></div>{caption}{folded}</figure>'


def from_markdown(text: str) -> str:
    """HTML of Markdown; cells carry their column's name, as rows are cards on a phone."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    columns: list[str] = []
    cell = 0
    for token, inner in pairwise(tokens):
        if token.type == "table_open":
            columns, cell = [], 0
        elif token.type == "th_open":
            columns.append(re.sub(r"\\(.)", r"\1", inner.content))
        elif token.type == "td_open":
            token.attrSet("data-label", columns[cell % len(columns)])
            cell += 1
    rendered = markdown.renderer.render(tokens, markdown.options, {})
    return re.sub(r"(?<=\d )(\[[^\]<]*\]|\([^)<]*\))(?=</td>)", r"<span>\1</span>", rendered)


def report(
    text: str,
    params: Params,
    plots: dict[str, pd.DataFrame],
    history: pd.DataFrame,
    masks: dict[str, pd.DataFrame],
    image_shape: list[int],
) -> str:
    """``reports/report.html``: the report in Markdown, with charts and the anatomy of the masks.

    Args:
        text: the content of ``reports/report.md``, whose figures lie beside it.
        plots: the tables of ``reports/plots``.
        history: of the runs whose training curves are shown.
        masks: the tables of ``data/masks/`` by name: density, overlap, units, first_layer.
        image_shape: height, width, channels; of what are no images any other.
    """
    makers = _charts(plots, history, masks, image_shape)
    drawn, failed = alone("chart", makers, lambda name: makers[name]().to_dict())

    def place(name: str, static: str = "") -> str:
        """The chart, or why it could not be made."""
        if name in failed:
            why = html.escape(failed[name])
            return f"<p>The chart {name} could not be made: {why}.</p>{static}"
        hint = HINT if "shown" in json.dumps(drawn[name].get("params")) else ""
        thin = name in ("accuracy", "early_stop") and "pruning" in set(plots[name]["variant"])
        return chart(name, hint + THIN * thin, static)

    def interactive(match: re.Match[str]) -> str:
        """The chart in the place of a static figure, which is printed."""
        image = files.read(files.REPORTS / "figures" / f"{match[1]}.svg")
        source = f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"
        static = f'<img alt="{match[2]}" src="{source}">'
        return place(match[1], static) if match[1] in makers else f"<figure>{static}</figure>"

    figure = r'<p><img src="figures/(\w+)\.svg" alt="([^"]*)" /></p>'
    parameters = io.StringIO()
    YAML(typ="safe").dump(params.model_dump(exclude={"data": {"source"}}), parameters)
    body = re.sub(figure, interactive, from_markdown(text))
    places = {name: Markup(place(name)) for name in makers}
    body += _rendered("anatomy.html.j2", charts=places, parameters=parameters.getvalue())
    title = re.sub(r"\\(.)", r"\1", text.partition("\n")[0].removeprefix("# "))
    return page(title, body, drawn)


def _charts(
    plots: dict[str, pd.DataFrame],
    history: pd.DataFrame,
    masks: dict[str, pd.DataFrame],
    image_shape: list[int],
) -> dict[str, Callable[[], Any]]:
    """What makes each chart, by name; those that would show nothing are left out."""

    def means(table: pd.DataFrame, value: pd.Series) -> pd.DataFrame:
        """Over seeds and pairs of them."""
        groups = table.assign(value=value).groupby(["round", "layer"], sort=False)
        return groups["value"].mean().reset_index()

    units, overlap = masks["units"], masks["overlap"]
    accuracy = ("Test accuracy at early stop", "weights remaining", "test accuracy")
    stop = ("Early-stop iteration", "weights remaining", "early-stop iteration")
    density = plots["density"].rename(columns={"weights_remaining": "value"})
    dead = means(units, units["dead"] / units["units"])
    excess = means(overlap, overlap["jaccard"] - overlap["jaccard_by_chance"])
    layers = charts.by_layer
    makers: dict[str, Callable[[], Any]] = {
        "accuracy": partial(charts.by_density, plots["accuracy"], accuracy, ".1%"),
        "early_stop": partial(charts.by_density, plots["early_stop"], stop, ",.0f"),
        "training_curves": partial(charts.training_curves, plots["training_curves"], history),
        "density": partial(layers, density, "Weights remaining by layer and round", ".3~p"),
        "first_layer": partial(charts.first_layer, masks["first_layer"], image_shape),
    }
    if dead["value"].any():
        makers["units"] = partial(layers, dead, "Dead units by layer and round", ".1%")
    if excess["value"].abs().max() >= 0.0005:
        makers["overlap"] = partial(layers, excess, "Overlap of seeds, above chance", ".1%")
    return makers


def main() -> None:
    """Writes what DVC draws with, after a change of a chart: ``python -m lottery.report.page``."""
    for name, text in charts.templates().items():
        files.write(DVC / "plots" / name, text.encode())
    files.write(DVC / "plots.html", for_dvc().encode())


if __name__ == "__main__":
    main()
