"""The report in Markdown: the verdict first, then the numbers behind it."""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from lottery.params import VARIANTS, Params, Prune
from lottery.report.outcomes import by_round, instabilities
from lottery.report.statistics import FEWEST, MOST_SEEDS, POWER, Median, at_most
from lottery.report.verdict import NOT_LEARNED, Claim, Conclusion, Judgement

T = TypeVar("T")
STABLE = 0.02  # test error, as a share (Frankle et al. 2020, section 2)


def alone(name: str, make: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """What ``make`` gives; where it fails, what ``otherwise`` makes of the reason, which is said.

    A report is written after hours of training: a part that fails must not take others with it.
    """
    try:
        return make()
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"report: {name} is left out: {why}", file=sys.stderr)
        return otherwise(why)


def _section(name: str, make: Callable[[], str]) -> str:
    return alone(
        name, make, lambda why: f"Left out, because it could not be written: {plain(why)}."
    )


def plain(name: str) -> str:
    """A name in Markdown, where none of its characters is markup."""
    text = " ".join(name.split())
    return re.sub(r"[\\`*\[\]<>|$~#&]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def sentence(conclusion: Conclusion, params: Params) -> str:
    """The verdict in one or two sentences, of what was tested and no more."""
    shown, claim = conclusion.shown, conclusion.claim
    if not conclusion.won or shown is None:
        title = conclusion.verdict[:1].upper() + conclusion.verdict[1:]
        return f"**{title}.** {conclusion.reason[:1].upper()}{conclusion.reason[1:]}."
    margin = _points(params.report.margin)
    against = shown.compared["dense"]
    lower = against.high is not None and against.high < 0
    words = [
        f"its test accuracy is {'lower, but ' if lower else ''}within {margin} of the dense "
        f"network's ({_signed(against.value)} points; dense {conclusion.dense_accuracy:.2%})"
    ]
    if claim.iterations:
        ratio = shown.early_stop_ratio.value
        words.append(
            f"it stops at {ratio:.2f} times the dense network's iterations, not more than "
            f"{100 * params.report.iteration_margin:g}% later"
        )
    words += [
        f"it is {100 * shown.compared[name].value:.2f} points above its `{name}` control, by more "
        f"than {margin}"
        for name in claim.controls
    ]
    return (
        f"**{conclusion.claim.won[:1].upper()}{conclusion.claim.won[1:]}.** The sparsest has "
        f"{shown.weights_remaining:.2%} of the weights. In the typical seed, within "
        f"{_length(params)}, {'; '.join(words)}. {conclusion.seeds} seeds, at "
        f"{params.report.confidence:.0%} confidence."
    )


def markdown(
    params: Params,
    facts: dict[str, Any],
    environments: list[dict[str, Any]],
    runs: pd.DataFrame,
    conclusion: Conclusion,
    lines: pd.DataFrame,
    failed: Mapping[str, str],
) -> str:
    """The whole of ``reports/report.md``.

    Args:
        lines: the content of ``stability.csv``.
        failed: figures that could not be drawn, with the reason.
    """
    environment = Environment(
        loader=PackageLoader("lottery.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plain"] = plain
    template = environment.get_template("report.md.j2")
    rounds, report = conclusion.rounds, params.report
    level = 1 - (1 - report.confidence) / max(len(rounds), 1)
    validation = params.data.validation_size
    training = sum(facts["class_counts"]) - facts["test"] - validation
    return template.render(
        params=params,
        facts=facts,
        conclusion=conclusion,
        claim=conclusion.claim,
        sentence=sentence(conclusion, params),
        setting=_setting(params, conclusion.seeds),
        failed=failed,
        results=_section("section results", lambda: _results(runs)),
        ended=_section("section censored", lambda: _ended(runs, params)),
        judged=bool(rounds),
        compared=_section("section comparison", lambda: _compared(rounds, conclusion.claim))
        if rounds
        else "",
        interval=f"its {report.confidence:.0%} interval, simultaneous over {len(rounds)} rounds"
        if len(rounds) > 1
        else f"its {level:.0%} interval",
        generalises=_generalises(params, facts),
        criteria=_section("section criteria", lambda: _criteria(rounds, report.confidence))
        if rounds
        else "",
        rule=_rule(params, conclusion.claim),
        notes=_notes(conclusion),
        stability=""
        if lines.empty
        else _section("section linear mode connectivity", lambda: _stability(lines)),
        environments="\n".join(_environment(e) for e in environments),
        parts=f"{training:,} train, {validation:,} validation, {facts['test']:,} test",
    )


def _setting(params: Params, seeds: int) -> str:
    train = params.train
    return (
        f"{seeds} seeds; {train.optimizer} at {train.learning_rate:g}, batches of "
        f"{train.batch_size}, {_length(params)}{_recipe(params)}; {_pruning(params.prune)}."
    )


def _length(params: Params) -> str:
    train = params.train
    return f"{train.iterations:,} iterations" if train.iterations else f"{train.epochs} epochs"


def _recipe(params: Params) -> str:
    """What the network and its training have besides the plain ones."""
    model, train = params.model, params.train
    steps, augmentation = train.learning_rate_steps, train.augmentation
    stopping = train.early_stopping
    parts = [
        model.width != 1 and f"{model.width:g} times the width",
        model.dropout and f"dropout {model.dropout:g}",
        train.momentum and f"momentum {train.momentum:g}",
        train.weight_decay and f"weight decay {train.weight_decay:g}",
        train.warmup_iterations and f"warm-up over {train.warmup_iterations} iterations",
        steps
        and f"learning rate times {steps.factor:g} at {', '.join(map(str, steps.iterations))}",
        augmentation and augmentation.flip and "images flipped",
        augmentation
        and augmentation.crop
        and f"images padded by {augmentation.crop} pixels and cut",
        stopping
        and f"ended after {stopping.patience} evaluations without a better validation loss",
        train.precision != "float32" and f"computed in {train.precision}",
    ]
    return "".join(f", {part}" for part in parts if part)


def _pruning(prune: Prune) -> str:
    """How the tickets were found and what they keep."""
    criterion = prune.criterion.replace("_", " ")
    schedule = {"iterative": "iterative", "one_shot": "one-shot"}[prune.schedule]
    kept = {
        "rewind": "initial weights"
        if prune.rewind_iteration == 0
        else f"weights at iteration {prune.rewind_iteration}",
        "finetune": "trained weights, trained on at the last learning rate",
        "learning_rate_rewind": "trained weights, trained again on the schedule from iteration "
        f"{prune.rewind_iteration}",
    }[prune.strategy]
    return (
        f"{prune.rounds} rounds of {schedule} {prune.scope} pruning by {criterion}; "
        f"tickets keep their {kept}"
    )


def in_order(variant: str) -> tuple[int, str]:
    """Sorts variants: the dense network, those of this project as listed, one's own by name."""
    known = ("dense", *VARIANTS)
    return known.index(variant) if variant in known else len(known), variant


def table(rows: list[dict[str, str]], *, words: int = 1) -> str:
    """A Markdown table; the first so many columns hold words, the others numbers."""
    columns = list(rows[0])
    align = ["left"] * words + ["right"] * (len(columns) - words)
    frame = pd.DataFrame(rows, columns=columns)
    return str(frame.to_markdown(index=False, disable_numparse=True, colalign=align))


def _results(runs: pd.DataFrame) -> str:
    """A row per variant and round."""
    tables = {
        column: by_round(runs, column).set_index(["variant", "round"])
        for column in (
            "test_accuracy",
            "final_test_accuracy",
            "initial_test_accuracy",
            "early_stop_iteration",
        )
    }
    accuracy, final, initial, stop = tables.values()
    order = [
        k for v in sorted(set(runs["variant"]), key=in_order) for k in accuracy.index if k[0] == v
    ]
    return table(
        [
            {
                "variant": plain(str(key[0])),
                "round": str(key[1]),
                "weights remaining": f"{accuracy.loc[key, 'weights_remaining']:.2%}",
                "test accuracy (%)": _range(accuracy.loc[key] * 100, 2),
                "at the end (%)": f"{100 * final.loc[key, 'mean']:.2f}",
                "untrained (%)": f"{100 * initial.loc[key, 'mean']:.1f}",
                "early-stop iteration": _range(stop.loc[key], 0),
            }
            for key in order
        ]
    )


def _ended(runs: pd.DataFrame, params: Params) -> str:
    """Runs that were cut off by their length, and those that diverged, by variant and round."""
    parts = []
    for column, words in (
        (
            "censored",
            "cut off by their length, their lowest validation loss at the last evaluation",
        ),
        ("diverged", "diverged: their accuracy counts as a guess"),
    ):
        counts = runs.groupby(["variant", "round"])[column].agg(["sum", "count"])
        some = [
            f"{plain(str(variant))}{f' {number}' if number else ''} {hits} of {n}"
            for (variant, number), hits, n in counts[counts["sum"] > 0].itertuples()
        ]
        if some:
            parts.append(f"Runs {words}: {', '.join(some)}.")
        elif column == "censored":
            parts.append(f"No run was cut off by its length of {_length(params)}.")
    if runs.loc[~runs["variant"].isin(["dense", "ticket"]), "censored"].any():
        parts.append(
            "A control that was cut off is compared within the same budget of iterations, and at "
            "its end by the column of that name."
        )
    if runs.loc[runs["variant"] == "dense", "censored"].any():
        parts.append("The early stop of a dense network that was cut off is a lower bound.")
    return " ".join(parts)


def _compared(rounds: tuple[Judgement, ...], claim: Claim) -> str:
    """The ticket of each round minus the others of that round, medians with intervals."""
    others = sorted({name for j in rounds for name in j.compared}, key=in_order)
    rows = []
    for j in rounds:
        row = {"round": str(j.round), "weights remaining": f"{j.weights_remaining:.2%}"}
        row |= {f"− {plain(name)}": _interval(j.compared.get(name), 100, 2) for name in others}
        row["early stop / dense"] = _interval(j.early_stop_ratio, 1, 2, sign=False)
        row[claim.subject] = _outcome(j)
        rows.append(row)
    return table(rows)


def _outcome(j: Judgement) -> str:
    if j.missing:
        return "open: no control"
    if j.outcome != "open" or j.needed is None:
        return j.outcome
    heading, seeds = j.needed
    if seeds is None:
        return f"open: over {MOST_SEEDS:,} seeds to {heading}"
    return f"open: about {seeds} seeds to {heading}"


def _criteria(rounds: tuple[Judgement, ...], confidence: float) -> str:
    """Seeds that miss each criterion by themselves, with an upper bound of their share."""
    names = list(dict.fromkeys(c.name for j in rounds for c in j.criteria))
    rows = []
    for j in rounds:
        found = {c.name: c for c in j.criteria}
        row = {"round": str(j.round)}
        for name in names:
            c = found[name]
            bound = at_most(c.misses, c.seeds, confidence)
            row[f"seeds that miss: {name}"] = f"{c.misses} of {c.seeds} (at most {bound:.0%})"
        rows.append(row | {"p": f"{j.p_win:.2g}"})
    return table(rows)


def _rule(params: Params, claim: Claim) -> str:
    """What a win is, in words."""
    margin, report = _points(params.report.margin), params.report
    parts = [f"accuracy not lower than the dense network's by {margin} or more"]
    if claim.iterations:
        parts.append(
            f"early stop not later by {100 * report.iteration_margin:g}% of the dense network's "
            "or more"
        )
    parts += [f"accuracy more than {margin} above `{name}`" for name in claim.controls]
    order = (
        "Rounds are corrected by Holm's method"
        if params.retrain.rounds == "all"
        else "Rounds are tested in the order listed, each at full level, until one fails"
    )
    return (
        f"A round wins where the typical seed meets all of these, each by a one-sided sign test "
        f"(p, the largest, below {1 - report.confidence:.2g}): {'; '.join(parts)}. {order}. "
        f"The bounds of the shares are one-sided, at {report.confidence:.0%} (Clopper–Pearson). "
        f"Fewer than {FEWEST} seeds show nothing. An open round shows the number of seeds that "
        f"would decide it with probability {POWER:.0%}, were the shares observed the true ones."
    )


def _notes(conclusion: Conclusion) -> list[str]:
    """What a reader must not overlook."""
    notes = []
    if 0 < conclusion.learned < conclusion.seeds:
        failed = conclusion.seeds - conclusion.learned
        notes.append(
            f"{NOT_LEARNED[:1].upper()}{NOT_LEARNED[1:]} in {failed} of {conclusion.seeds} seeds; "
            "they count as failures."
        )
    for j in conclusion.rounds:
        if beyond := j.beyond():
            notes.append(
                f"Round {j.round}: the interval reaches beyond the bound that the test passed "
                f"({', '.join(beyond)}): it is two-sided and simultaneous, the test is neither."
            )
    return notes


def _generalises(params: Params, facts: dict[str, Any]) -> str:
    """What the intervals speak of, and what not."""
    if params.data.split == "shared":
        return (
            "Intervals generalise over seeds and orders, on this one split of these images; "
            "not over other splits, images or test sets."
        )
    parts = "training and validation images" if facts["own_test"] else "splits of these images"
    return (
        f"Intervals generalise over seeds, orders and {parts}; "
        "not over other images or other test sets."
    )


def _stability(lines: pd.DataFrame) -> str:
    rows = []
    for (number, remaining), group in instabilities(lines).groupby(["round", "weights_remaining"]):
        values = group["instability"]
        rows.append(
            {
                "round": str(number),
                "weights remaining": f"{remaining:.2%}",
                "instability (points)": _range(100 * values.agg(["mean", "min", "max"]), 2),
                "stable seeds": f"{int((values < STABLE).sum())} of {len(values)}",
                "barrier (nats)": _range(group["barrier"].agg(["mean", "min", "max"]), 3),
            }
        )
    return (
        f"{table(rows)}\n\nTwo copies of each network, trained from the same weights in different "
        "data orders: the highest test error on the line between them "
        f"({lines['position'].nunique()} points) minus the mean error of its ends, and the same of "
        "the training loss (barrier), mean [smallest, largest] over seeds. Below "
        f"{100 * STABLE:g} points a network is stable (Frankle et al. 2020). Round 0 is the dense "
        "network."
    )


def _environment(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"- {environment['device']}, {environment['threads']} thread(s) a run; {versions}"


def _range(row: Any, decimals: int) -> str:
    low, high = f"{row['min']:,.{decimals}f}", f"{row['max']:,.{decimals}f}"
    return f"{row['mean']:,.{decimals}f} [{low}, {high}]"


def _interval(found: Median | None, scale: float, decimals: int, *, sign: bool = True) -> str:
    if found is None:
        return "not trained"
    form = f"{'+' if sign else ''}.{decimals}f"
    if found.low is None or found.high is None:
        return f"{found.value * scale:{form}} [too few seeds]"
    return f"{found.value * scale:{form}} [{found.low * scale:{form}}, {found.high * scale:{form}}]"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}"


def _points(share: float) -> str:
    """0.005 as 0.5 points."""
    number = f"{100 * share:g}"
    return f"{number} point" if number == "1" else f"{number} points"
