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
from lottery.datasets.sources import OWN
from lottery.errors import LotteryError, without_secrets
from lottery.params.reading import CONFLICT_MARK, differences, value_at
from lottery.report import charts, page
from lottery.report.text import plain, table
from lottery.tools.dvc_files import md5s

PAGE = files.REPORTS / "compare.html"
HERE = "workspace"
DRAWN = {  # of reports/plots: title and axes, and the format of values
    "accuracy": (("Test accuracy", "weights remaining", "accuracy"), ".2%"),
    "early_stop": (("Early-stop iteration", "weights remaining", "early-stop iteration"), ",.0f"),
}


class Results(NamedTuple):
    """What one revision found: metrics, all parameters by dotted key, and the tables of DRAWN.

    ``inputs``: md5 of the dataset and of each piece of code, by path; None where it is not known.
    """

    metrics: dict[str, Any]
    params: dict[str, Any]
    plots: dict[str, pd.DataFrame]
    other: list[str]  # parameters that these results are not of
    inputs: dict[str, str] | None


def results_at(revision: str) -> Results:
    """What is committed at a revision, or lies HERE; LotteryError: not there, or not readable."""
    commit = None if revision == HERE else _commit(revision)

    def read(path: str, parse: Callable[[str], Any]) -> Any:
        """The file's content, parsed."""
        origin, text = f"{revision}: {path}", _text(commit, path)
        if text is None:
            raise LotteryError(f"{revision}: no {path}: run `dvc repro` there and commit reports/")
        if CONFLICT_MARK.search(text):
            raise LotteryError(f"{origin}: holds conflict marks of a merge: resolve it first")
        try:
            return parse(text)
        except (ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
            why = str(error).splitlines()[0]
            raise LotteryError(f"{origin}: cannot be read ({why}): `dvc repro` writes it") from None

    metrics = read("reports/metrics.json", json.loads)
    if any(isinstance(value, dict) for value in metrics.values()):
        raise LotteryError(
            f"{revision}: reports/metrics.json: is of an older version of this project: "
            "`dvc repro report` there writes it anew"
        )
    plots = {
        name: read(f"reports/plots/{name}.csv", lambda text: pd.read_csv(io.StringIO(text)))
        for name in DRAWN
    }
    keys, now = (read("params.yaml", parse) for parse in (_keys, YAML(typ="safe").load))
    locked = _text(commit, "dvc.lock") is not None
    ran, inputs = read("dvc.lock", _locked) if locked else ({}, None)
    other = [line for k, v in ran.items() for line in differences(k, v, value_at(now, k))]
    if commit is None:
        params.load()  # here a misspelt key is a mistake, not a difference
    return Results(metrics, keys, plots, other, inputs)


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


def _locked(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the results of a ``dvc.lock`` are of: parameters (all are read by two of its stages);
    md5 of the dataset and of each piece of code.
    """
    stages = YAML(typ="safe").load(text)["stages"]
    these = (stages.get(name, {}).get("params", {}) for name in ("fetch", "report"))
    ran = {key: value for one in these for key, value in one.get("params.yaml", {}).items()}
    inputs = md5s(stages.get("fetch", {}), "outs")
    for stage in stages.values():
        inputs |= md5s(stage, "deps")
    counts = (str(files.DATASET), str(OWN))  # of data/: the rest is computed of these
    return ran, {
        path: md5
        for path, md5 in inputs.items()
        if path.startswith(counts) or not path.startswith("data/")
    }


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
    """In Markdown: metrics, of two revisions with what changes, then parameters that differ."""
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
    parts = [f"## {' and '.join(names)}"]
    for name, revision in zip(names, revisions, strict=True):
        if revision.other:
            why = "its results are of other parameters**, `dvc repro` first"
            parts.append(f"**{name}: {why}: {plain('; '.join(revision.other))}.")
    parts.append(table(metrics))
    known = [r.inputs for r in revisions if r.inputs is not None]
    paths = dict.fromkeys(path for inputs in known for path in inputs)
    others = [path for path in paths if len({inputs.get(path) for inputs in known}) > 1]
    if others:
        parts.append(f"**Data or code differ**: {', '.join(map(plain, others))}.")
    if len(known) < len(revisions):
        parts.append("Whether data and code are the same cannot be told: a dvc.lock is missing.")
    if differ:
        parts += ["Parameters that differ, defaults filled in:", table(differ)]
    else:
        parts.append("The parameters are the same.")
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
    how = argparse.RawDescriptionHelpFormatter
    prog = "python -m lottery compare"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=how)
    what = "a branch, tag or commit, such as main or HEAD~1, or the name of an experiment"
    parser.add_argument("revisions", metavar="REV", nargs="+", help=what)
    names = parser.parse_args(arguments).revisions
    results = {name: results_at(name) for name in (*names, HERE)}
    text = summary(results)
    drawn, order = {}, list(dict.fromkeys([HERE, *results]))
    for name, (labels, digits) in DRAWN.items():
        tables = [r.plots[name].assign(rev=revision) for revision, r in results.items()]
        drawn[name] = charts.by_density(pd.concat(tables), labels, digits, order)
    body = page.from_markdown(text) + "".join(page.chart(name, page.HINT) for name in drawn)
    specs = {name: chart.to_dict() for name, chart in drawn.items()}
    files.write(PAGE, page.page(" and ".join(results), body, specs).encode())
    print(text)
    print(f"Plots: {PAGE}")
