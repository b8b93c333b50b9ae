"""Two revisions side by side: ``python -m lottery compare REV`` compares the results of REV with the present ones.

Prints a Markdown summary, for a pull request, and writes ``reports/compare.html``, which opens offline.
"""

import argparse
import html
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.report import page
from lottery.tools.check import differences

PAGE = files.REPORTS / "compare.html"
PLOTS = {"accuracy": "test accuracy at early stop", "early_stop": "early-stop iteration"}
HERE = "workspace"

Results = tuple[dict[str, Any], dict[str, Any], dict[str, pd.DataFrame]]
"""metrics.json, params.yaml, and the tables of PLOTS by name."""


def of_revision(revision: str) -> Results:
    """What is committed at a revision; LotteryError where there is no such revision or it has no results."""

    def show(path: str) -> str:
        done = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, text=True)
        if done.returncode:
            raise LotteryError(
                f"{revision}: has no {path}: run `dvc repro` there and commit reports/"
            )
        return done.stdout

    known = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    if subprocess.run(known, capture_output=True).returncode:
        raise LotteryError(f"{revision}: not a revision that git knows here")
    return _results(show)


def of_workspace() -> Results:
    def show(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise LotteryError(f"{path}: not there: run `dvc repro` first") from None

    return _results(show)


def _results(show: Any) -> Results:
    tables = {name: pd.read_csv(io.StringIO(show(f"reports/plots/{name}.csv"))) for name in PLOTS}
    return (
        json.loads(show("reports/metrics.json")),
        YAML(typ="safe").load(show("params.yaml")),
        tables,
    )


def rows(metrics: dict[str, Any]) -> dict[str, float | str]:
    """The metrics worth a row each, by a readable name; accuracies as shares."""
    found: dict[str, float | str] = {"verdict": metrics["verdict"]}
    smallest = metrics["smallest_winning_ticket"]["weights_remaining"]
    found["smallest winning ticket, weights remaining"] = "none" if smallest is None else smallest
    parts = {"dense": metrics["dense"], **{n: v["best"] for n, v in metrics["variants"].items()}}
    for name, part in parts.items():
        label = name if name == "dense" else f"{name}, best round"
        if "weights_remaining" in part:
            found[f"{label}: weights remaining"] = part["weights_remaining"]
        found[f"{label}: test accuracy"] = part["test_accuracy"]["mean"]
        found[f"{label}: early-stop iteration"] = part["early_stop_iteration"]["mean"]
    return found


def _shown(name: str, value: float | str | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if "iteration" in name else f"{value:.2%}"


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(before, str) or isinstance(now, str) or before is None or now is None:
        return "" if before == now else "changed"
    difference = now - before
    return f"{difference:+.0f}" if "iteration" in name else f"{100 * difference:+.2f} points"


def summary(revision: str, before: Results, now: Results) -> str:
    """The comparison in Markdown: metrics, then the parameters that differ."""
    old, new = rows(before[0]), rows(now[0])
    lines = [
        f"## {revision} and the {HERE}",
        "",
        f"| metric | {revision} | {HERE} | change |",
        "|---|--:|--:|--:|",
    ]
    for name in {**old, **new}:
        a, b = old.get(name), new.get(name)
        lines.append(f"| {name} | {_shown(name, a)} | {_shown(name, b)} | {_change(name, a, b)} |")
    changed = list(differences("params", before[1], now[1]))
    lines += ["", "Parameters that differ:" if changed else "The parameters are the same."]
    lines += [
        f"- `{line.removeprefix('params.').replace(' when the stage ran', '')}`" for line in changed
    ]
    return "\n".join(lines) + "\n"


def chart(revision: str, before: pd.DataFrame, now: pd.DataFrame, title: str) -> dict[str, Any]:
    """Means against weights remaining: a colour a variant, dashed for the revision; all in the legends."""
    table = pd.concat([before.assign(revision=revision), now.assign(revision=HERE)])
    percent = "accuracy" in title
    y = {
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False},
        "axis": {"format": "%" if percent else "d"},
    }
    x = {
        "field": "weights_remaining",
        "type": "quantitative",
        "title": "weights remaining",
        "scale": {"type": "log", "reverse": True, "nice": False, "padding": 12},
        "axis": {"format": "~p", "tickCount": 6},
    }
    digits = ".2%" if percent else ".0f"
    tips: list[dict[str, Any]] = [{"field": "revision"}, {"field": "variant"}, {"field": "round"}]
    tips += [{"field": name, "format": digits} for name in ("mean", "min", "max")]
    return {
        "width": "container",
        "height": 320,
        "title": f"{title[:1].upper()}{title[1:]}, mean over seeds",
        "data": {"values": json.loads(table.to_json(orient="records"))},
        "params": [
            {
                "name": "shown",
                "select": {"type": "point", "fields": ["variant"], "toggle": "true"},
                "bind": "legend",
            }
        ],
        "mark": {"type": "line", "point": {"size": 50}},
        "encoding": {
            "x": x,
            "y": {"field": "mean", **y},
            "color": {"field": "variant", "type": "nominal", "title": None},
            "strokeDash": {
                "field": "revision",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [HERE, revision], "range": [[1, 0], [5, 4]]},
            },
            "shape": {
                "field": "revision",
                "type": "nominal",
                "title": None,
                "scale": {"domain": [HERE, revision]},
            },
            "opacity": {"condition": {"param": "shown", "value": 1}, "value": 0.05},
            "tooltip": tips,
        },
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lottery compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "revision", metavar="REV", help="a branch, tag or commit, such as main or HEAD~1"
    )
    revision = parser.parse_args(arguments).revision
    try:
        before, now = of_revision(revision), of_workspace()
    except LotteryError as error:
        parser.exit(1, f"compare: {error}\n")
    text = summary(revision, before, now)
    charts = {
        name: chart(revision, before[2][name], now[2][name], title) for name, title in PLOTS.items()
    }
    body = page.from_markdown(text) + "".join(page.chart(name) for name in PLOTS)
    files.write(PAGE, page.page(f"{html.escape(revision)} and the {HERE}", body, charts).encode())
    print(text)
    print(f"Plots: {PAGE}")
