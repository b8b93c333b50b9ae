"""The report in Markdown: the verdict first, then the numbers behind it."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from lottery.params import VARIANTS, Params, Prune
from lottery.report.outcomes import guess, instabilities, learned
from lottery.report.statistics import MOST_SEEDS, POWER, Median, at_most
from lottery.report.verdict import NOT_LEARNED, Conclusion, Judgement

T = TypeVar("T")
DEAD = 0.9  # of survivors on a path: with fewer, dead units explain a part of the sparsity
BEGINNINGS = {"copies": "its copy", "round before": "the round before", "dense": "dense network"}
FLAGS = ("censored", "diverged", "improving")  # of runs, that the report lists
STABLE = 0.02  # test error, as a share (Frankle et al. 2020, section 2)


def alone(
    kind: str, names: Iterable[str], make: Callable[[str], T]
) -> tuple[dict[str, T], dict[str, str]]:
    """What ``make`` gives for each name; and why not, for those for which it fails.

    A report is written after hours of training: a part that fails must not take others with it.
    """
    made, failed = dict[str, T](), dict[str, str]()
    for name in names:
        try:
            made[name] = make(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"report: {kind} {name} is left out: {failed[name]}", file=sys.stderr)
    return made, failed


def plain(name: str) -> str:
    """A name in Markdown, where none of its characters is markup."""
    return re.sub(r"[\\`*\[\]<>|$~#&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", _line(name))


def _line(text: str) -> str:
    return " ".join(text.split())


def templates(package: str = "lottery.report", **options: Any) -> Environment:
    """The templates beside a package's modules, with filters for Markdown.

    ``options`` are Jinja's.
    """
    environment = Environment(
        loader=PackageLoader(package, "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters |= {"plain": plain, "line": _line}
    return environment


def in_order(variant: str) -> tuple[int, str]:
    """Sorts variants: the dense network, those of this project as listed, one's own by name."""
    known = ("dense", *VARIANTS)
    return known.index(variant) if variant in known else len(known), variant


def table(content: Any, *, words: int = 1) -> str:
    """A Markdown table of rows, or of columns by name: so many of ``words``, then numbers."""
    frame = pd.DataFrame(content)
    align = ["left"] * words + ["right"] * (frame.shape[1] - words)
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def sentence(conclusion: Conclusion, params: Params) -> str:
    """The verdict in one or two sentences, of what was tested and no more."""
    return str(_words().sentence(conclusion, params)).strip()


def _words() -> Any:
    return templates().get_template("words.md.j2").module


def markdown(
    params: Params,
    facts: dict[str, Any],
    environments: Mapping[str, list[dict[str, Any]]],
    runs: pd.DataFrame,
    pruning: pd.DataFrame,
    conclusion: Conclusion,
    lines: pd.DataFrame,
    results: pd.DataFrame,
    failed: Mapping[str, str],
    *,
    searched: bool = True,
) -> str:
    """The whole of ``reports/report.md``.

    Args:
        environments: by part of the experiment, what its runs were computed on.
        pruning: outcomes of the networks trained while pruning.
        lines: the content of ``stability.csv``.
        results: that of ``results.csv``.
        failed: figures that could not be drawn, with the reason.
        searched: whether some mask was found here.
    """
    sections = {
        "results": partial(_results, runs, params.prune),
        "compared": partial(_compared, conclusion),
        "criteria": partial(_criteria, conclusion.rounds, params.report.confidence),
        "paths": partial(_paths, results),
        "costs": partial(_costs, results),
    }
    if not lines.empty:
        sections["stability"] = partial(_stability, lines, facts)
    written, without = alone("section", sections, lambda name: sections[name]())
    for name, why in without.items():
        written[name] = f"Left out, because it could not be written: {plain(why)}."

    every = [one for some in environments.values() for one in some]
    once = [one for number, one in enumerate(every) if one not in every[:number]]
    computed_on = [(e, [part for part, some in environments.items() if e in some]) for e in once]
    trained = pd.concat([runs, pruning])
    template = templates().get_template("report.md.j2")
    text = template.render(
        written,
        params=params,
        facts=facts,
        environments=computed_on,
        conclusion=conclusion,
        failed=failed,
        training=sum(facts["class_counts"]) - facts["test"] - params.data.validation_size,
        by_flag={flag: _counts(trained, flag) for flag in FLAGS},
        cut_off=set(runs.loc[runs["censored"] | runs["improving"], "variant"]),
        searched=searched,
        points_on_the_line=0 if lines.empty else lines["position"].nunique(),
        stable=STABLE,
        not_learned=NOT_LEARNED,
        power=POWER,
    )
    return text + "\n"


def _results(runs: pd.DataFrame, prune: Prune) -> str:
    """A row per variant and round."""
    untrained = prune.strategy == "rewind" and not prune.rewind_iteration
    before = "untrained (%)" if untrained else "at its start (%)"
    groups = runs.groupby(["variant", "round"])
    in_legends = sorted(groups, key=lambda item: (in_order(item[0][0]), item[0][1]))
    rows = [
        {
            "variant": plain(variant),
            "round": number,
            "weights remaining": f"{group['weights_remaining'].mean():.2%}",
            "test accuracy (%)": _range(100 * group["test_accuracy"], 2),
            "at the end (%)": f"{100 * group['final_test_accuracy'].mean():.2f}",
            before: f"{100 * group['initial_test_accuracy'].mean():.1f}",
            "early-stop iteration": _range(group["early_stop_iteration"], 0),
        }
        for (variant, number), group in in_legends
    ]
    return table(rows)


def _counts(runs: pd.DataFrame, flag: str) -> list[str]:
    """How many runs have the flag, of each variant and round that has such: ``ticket 6 2 of 8``."""
    counts = runs.groupby(["variant", "round"])[flag].agg(["sum", "count"])
    return [
        f"{plain(str(variant))}{f' {number}' if number else ''} {hits} of {n}"
        for (variant, number), hits, n in counts[counts["sum"] > 0].itertuples()
    ]


def _compared(conclusion: Conclusion) -> str:
    """The ticket of each round minus the others of that round, medians with intervals."""
    others = sorted({name for j in conclusion.rounds for name in j.compared}, key=in_order)
    rows = []
    for j in conclusion.rounds:
        row: dict[str, Any] = {"round": j.round, "weights remaining": f"{j.weights_remaining:.2%}"}
        for name in others:
            minus = j.compared.get(name)
            row[f"− {plain(name)}"] = interval(minus, 100, "+") if minus else "not trained"
        row["early stop / dense"] = interval(j.early_stop_ratio, 1, "")
        row[conclusion.claim.subject] = _outcome(j)
        rows.append(row)
    return table(rows)


def _outcome(j: Judgement) -> str:
    if j.missing and j.outcome != "loses":
        return f"open: {j.missing}"
    if j.outcome != "open" or j.needed is None:
        return j.outcome
    heading, seeds = j.needed
    return f"open: {f'about {seeds}' if seeds else f'over {MOST_SEEDS:,}'} seeds to {heading}"


def _criteria(rounds: list[Judgement], confidence: float) -> str:
    """Seeds that miss each criterion by themselves, with an upper bound of their share."""
    rows = []
    for j in rounds:
        row: dict[str, Any] = {"round": j.round}
        for c in j.criteria:
            bound = at_most(c.misses, c.seeds, confidence)
            row[f"seeds that miss: {c.name}"] = (
                f"{c.misses} of {c.seeds} (at most {math.ceil(100 * bound)}%)"
            )
        rows.append(row | {"p": f"{j.p_win:.2g}"})
    return table(rows)


def _stability(lines: pd.DataFrame, facts: dict[str, Any]) -> str:
    """Instability and barrier by round; networks that are no better than a guess are not stable."""
    instability = instabilities(lines)
    alive = learned(instability["worse_end"], chance=guess(facts), test_images=facts["test"])
    instability["stable"] = alive & (instability["instability"] < STABLE)
    groups = instability.groupby(["between", "round"])
    rows = [
        {
            "from": BEGINNINGS[between],
            "to round": number,
            "weights remaining": f"{group['weights_remaining'].mean():.2%}",
            "instability (points)": _range(100 * group["instability"], 2),
            "stable seeds": f"{group['stable'].sum()} of {len(group)}",
            "barrier (nats)": _range(group["barrier"], 3),
        }
        for (between, number), group in groups
    ]
    return table(rows, words=2)


def _paths(results: pd.DataFrame) -> str:
    """Of each ticket, how many survivors are of use; nothing where that could not be counted."""
    tickets = results[results["variant"] == "ticket"].dropna(subset="effective_weights_remaining")
    return str(_words().paths(tickets.to_dict("records"), DEAD)).strip()


def _costs(results: pd.DataFrame) -> str:
    """Operations of the dense network and of each ticket."""

    def three_digits(operations: pd.Series) -> pd.Series:
        """Of each number, or that it is unknown."""
        return operations.map(lambda v: f"{float(f'{v:.3g}'):,g}" if v == v else "unknown")

    counted = results[results["variant"].isin(["dense", "ticket"])]
    finding, training = counted["finding_flops"], counted["training_flops"]
    dense = training[counted["variant"] == "dense"].item()
    columns = {
        "variant": counted["variant"],
        "round": counted["round"],
        "weights remaining": counted["weights_remaining"].map("{:.2%}".format),
        "inference (MFLOPs)": three_digits(counted["inference_flops"] / 1e6),
        "training (TFLOPs)": three_digits(training / 1e12),
        "finding (TFLOPs)": three_digits(finding / 1e12),
        "together / dense": three_digits((finding + training) / dense),
    }
    return table(columns)


def _range(values: pd.Series, decimals: int) -> str:
    if values.isna().all():
        return "none"
    mean, low, high = (f"{v:,.{decimals}f}" for v in (values.mean(), values.min(), values.max()))
    return f"{mean} [{low}, {high}]"


def interval(median: Median, scale: float, sign: str) -> str:
    """A median and its interval, times ``scale``; ``sign``: "+" shows that of each number."""
    value, *bounds = ("" if v is None else f"{v * scale:{sign}.2f}" for v in median)
    return f"{value} [{', '.join(bounds) if all(bounds) else 'too few seeds'}]"
