"""Results side by side: ``python -m lottery compare REV…``, revisions and the present results.

A revision is a branch, tag or commit, or the name of an experiment of `dvc exp`. Prints a Markdown
summary, for a pull request, and writes ``reports/compare.html``, which opens offline.
"""

import argparse
import io
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lottery import params
from lottery.artifacts import files
from lottery.errors import LotteryError, without_secrets
from lottery.report import charts, page
from lottery.report.text import plain, table
from lottery.tools.check import differences, value_at

PAGE = files.REPORTS / "compare.html"
HERE = "workspace"


class Results(NamedTuple):
    """What one revision found: metrics, all parameters by dotted key, and what is drawn of it.

    ``inputs``: md5 of the dataset and of each piece of code, by path; None where it is not known.
    """

    metrics: dict[str, Any]
    params: dict[str, Any]
    accuracy: pd.DataFrame
    early_stop: pd.DataFrame
    other: list[str]  # parameters that these results are not of
    inputs: dict[str, str] | None


def results_at(revision: str) -> Results:
    """What is committed at a revision, or lies HERE.

    Raises LotteryError where there is no such revision, or no results, or they cannot be read.
    """
    commit = None if revision == HERE else _commit(revision)

    def read(path: str, parse: Callable[[str], Any]) -> Any:
        """The file's content, parsed."""
        where, text = f"{revision}: {path}", _text(commit, path)
        if text is None:
            raise LotteryError(f"{revision}: no {path}: run `dvc repro` there and commit reports/")
        if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
            raise LotteryError(f"{where}: holds conflict marks of a merge: resolve it first")
        try:
            return parse(text)
        except (ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
            why = str(error).splitlines()[0]
            raise LotteryError(f"{where}: cannot be read ({why}): `dvc repro` writes it") from None

    metrics = read("reports/metrics.json", json.loads)
    if any(isinstance(value, dict) for value in metrics.values()):
        raise LotteryError(
            f"{revision}: reports/metrics.json: is of an older version of this project: "
            "`dvc repro report` there writes it anew"
        )
    plots = [
        read(f"reports/plots/{name}.csv", lambda text: pd.read_csv(io.StringIO(text)))
        for name in ("accuracy", "early_stop")
    ]
    keys = read("params.yaml", _keys)
    locked = _text(commit, "dvc.lock") is not None
    ran, inputs = (read("dvc.lock", of) if locked else None for of in (_ran, _inputs))
    now = read("params.yaml", YAML(typ="safe").load)
    other = [line for k, v in (ran or {}).items() for line in differences(k, v, value_at(now, k))]
    if commit is None:
        params.load()  # here a misspelt key is a mistake, not a difference
    accuracy, early_stop = (table.assign(rev=revision) for table in plots)
    return Results(metrics, keys, accuracy, early_stop, other, inputs)


def _commit(revision: str) -> str:
    """The commit of a branch, a tag or an experiment; of several of one name that of HEAD."""
    from dvc.scm import SCM, SCMError, resolve_rev

    try:
        return str(resolve_rev(SCM("."), revision))
    except SCMError as error:
        why = (
            "no branch, tag, commit or experiment that git knows here: `git branch -a` and "
            "`dvc exp list` show those there are"
        )
        if str(error).startswith("ambiguous"):
            why = "several commits have an experiment of that name, and the present one has none"
            why += ": name its commit instead"
        raise LotteryError(f"{revision}: {why}") from None


def _text(commit: str | None, path: str) -> str | None:
    """A file of the present folder, at a commit or as it is; None where there is none."""
    if commit:
        show = ["git", "show", f"{commit}:./{path}"]
        done = subprocess.run(show, capture_output=True, encoding="utf-8")
        return None if done.returncode else done.stdout
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else None


def _ran(text: str) -> dict[str, Any]:
    """The parameters that the results of a ``dvc.lock`` are of: all are read by these two."""
    stages = YAML(typ="safe").load(text)["stages"]
    these = (stages.get(name, {}) for name in ("fetch", "report"))
    return {k: v for of in these for k, v in of.get("params", {}).get("params.yaml", {}).items()}


def _inputs(text: str) -> dict[str, str]:
    """The dataset that the results of a ``dvc.lock`` are of, and the code of its stages."""
    stages = YAML(typ="safe").load(text)["stages"]
    entries = [*stages.get("fetch", {}).get("outs", [])]
    entries += [one for of in stages.values() for one in of.get("deps", [])]
    kept = (
        one for one in entries if one["path"] == str(files.DATASET) or "data/" not in one["path"]
    )
    return {one["path"]: one.get("md5", "") for one in kept}


def _keys(text: str) -> dict[str, Any]:
    """Parameters by dotted key, defaults filled in; as they are where of another version."""
    content = YAML(typ="safe").load(text) or {}
    try:
        content = params.validate(content).model_dump()
    except LotteryError:
        pass  # keys that this version does not know are differences to be shown
    keys = dict(pd.json_normalize(content).to_dict("records")[0])
    if isinstance(source := keys.get("data.source"), str):
        keys["data.source"] = without_secrets(source)
    return keys


def summary(results: Mapping[str, Results]) -> str:
    """The comparison in Markdown: metrics, then the parameters that differ, a column a revision.

    Where two are compared, the metrics have a column of changes.
    """
    revisions, names = list(results.values()), [plain(name) for name in results]
    metrics, differ = [], []
    for key in dict.fromkeys(key for r in revisions for key in r.metrics):
        values = [r.metrics.get(key) for r in revisions]
        row = {"metric": key} | dict(zip(names, map(_shown, values), strict=True))
        metrics.append(row | ({"change": _change(*values)} if len(values) == 2 else {}))
    for key in dict.fromkeys(key for r in revisions for key in r.params):
        texts = [json.dumps(r.params[key]) if key in r.params else "(absent)" for r in revisions]
        if len(set(texts)) > 1:
            differ.append({"parameter": key} | dict(zip(names, map(plain, texts), strict=True)))
    parts = [f"## {' and '.join(names)}", table(metrics), "The parameters are the same."]
    known = [r.inputs for r in revisions if r.inputs is not None]
    paths = dict.fromkeys(path for inputs in known for path in inputs)
    others = [path for path in paths if len({inputs.get(path) for inputs in known}) > 1]
    if others:
        parts[-1:-1] = [f"**Data or code differ**: {', '.join(map(plain, others))}."]
    if len(known) < len(revisions):
        parts[-1:-1] = ["Whether data and code are the same cannot be told: a dvc.lock is missing."]
    for name, found in zip(names, revisions, strict=True):
        if found.other:
            why = "its results are of other parameters**, `dvc repro` first"
            parts[1:1] = [f"**{name}: {why}: {plain('; '.join(found.other))}."]
    if differ:
        parts[-1:] = ["Parameters that differ, defaults filled in:", table(differ)]
    return "\n\n".join(parts) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return plain(value) if isinstance(value, str) else f"{value:g}"


def _change(before: Any, now: Any) -> str:
    if isinstance(before, int | float) and isinstance(now, int | float):
        return f"{now - before:+.4g}" if now != before else "0"
    return "" if before == now else "changed"


def main(arguments: list[str]) -> None:
    """``python -m lottery compare``. Raises LotteryError."""
    parser = argparse.ArgumentParser(
        prog="python -m lottery compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "revisions",
        metavar="REV",
        nargs="+",
        help="a branch, tag or commit, such as main or HEAD~1, or the name of an experiment",
    )
    names = parser.parse_args(arguments).revisions
    results = {name: results_at(name) for name in (*names, HERE)}
    text = summary(results)
    order = [HERE, *results][:-1]
    x, stop = "weights remaining", "early-stop iteration"
    accuracy = pd.concat([r.accuracy for r in results.values()])
    early = pd.concat([r.early_stop for r in results.values()])
    drawn = {
        "accuracy": charts.by_density(accuracy, ("Test accuracy", x, "accuracy"), ".2%", order),
        "early_stop": charts.by_density(early, ("Early-stop iteration", x, stop), ",.0f", order),
    }
    body = page.from_markdown(text) + "".join(page.chart(name, page.HINT) for name in drawn)
    specs = {name: chart.to_dict() for name, chart in drawn.items()}
    files.write(PAGE, page.page(" and ".join(results), body, specs).encode())
    print(text)
    print(f"Plots: {PAGE}")
