"""The report in Markdown: the verdict first, then the numbers behind it."""

from typing import Any

import pandas as pd

from lottery.params import VARIANTS, Params, Prune
from lottery.report.verdict import (
    MOST_SEEDS,
    POWER,
    Conclusion,
    Judgement,
    best_round,
    by_round,
    instabilities,
)


def sentence(conclusion: Conclusion, params: Params, dense_accuracy: float) -> str:
    """The verdict as one sentence."""
    smallest = conclusion.smallest
    if smallest is not None:
        accuracy, iterations = smallest.accuracy_difference[0], smallest.iteration_difference[0]
        return (
            f"**Winning ticket found.** The smallest has {smallest.weights_remaining:.2%} of the weights: "
            f"{_points(accuracy)} test accuracy against the dense network ({dense_accuracy:.2%}), "
            f"early stop {abs(iterations):.0f} iterations {'earlier' if iterations <= 0 else 'later'}, "
            f"at {params.report.confidence:.0%} confidence."
        )
    title = "No winning ticket." if conclusion.verdict == "no winning ticket" else "Inconclusive."
    return f"**{title}** {conclusion.reason[:1].upper()}{conclusion.reason[1:]}."


def markdown(
    params: Params,
    facts: dict[str, Any],
    environments: list[dict[str, Any]],
    runs: pd.DataFrame,
    conclusion: Conclusion,
    lines: pd.DataFrame,
) -> str:
    """The whole of ``reports/report.md``; ``lines`` is the content of ``stability.csv``."""
    dense = runs[runs["variant"] == "dense"]
    train, report = params.train, params.report
    length = f"{train.iterations} iterations" if train.iterations else f"{train.epochs} epochs"
    parts = [
        "# Lottery tickets: " + f"{params.model.name} on {facts['title']}",
        sentence(conclusion, params, dense["test_accuracy"].mean()),
        f"{len(dense)} seeds; {train.optimizer} at {train.learning_rate:g}, batches of {train.batch_size}, {length}{_recipe(params)}; "
        f"{_pruning(params.prune)}. Accuracy is on the {facts['test']:,} test images at the "
        "early-stop iteration, the one of lowest validation loss: mean [smallest, largest] over seeds.",
        "![Test accuracy against weights remaining](figures/accuracy.svg)",
        "## Results",
        _results(runs),
        "## The tickets against the dense network and their re-initialised controls",
        _judgements(conclusion.rounds, report.confidence)
        if conclusion.rounds
        else conclusion.reason,
        f"Differences are paired by seed, with their {report.confidence:.0%} interval. A ticket wins where all three hold "
        f"by one-sided paired t-tests (p, Holm-corrected for {len(conclusion.rounds)} rounds, below "
        f"{1 - report.confidence:.2g}): accuracy not lower than dense by {_margin(report.margin)}; early stop not "
        f"later by {train.evaluate_every} iterations, the distance of two evaluations; accuracy more than "
        f"{_margin(report.margin)} above the control's. An open round shows the number of seeds that would decide it with "
        f"probability {POWER:.0%}, if the differences observed are the true ones.",
        *([] if lines.empty else ["## Linear mode connectivity", _stability(lines)]),
        "## Figures",
        "![Early-stop iteration against weights remaining](figures/early_stop.svg)",
        "![Training curves](figures/training_curves.svg)",
        "![Weights remaining by layer and round](figures/density.svg)",
        "## Computed on",
        "\n".join(_environment(e) for e in environments),
        f"Dataset: {facts['title']}, from {facts['source']}; sha256 of its images and labels `{facts['sha256'][:16]}…`; "
        + f"{sum(facts['class_counts']) - facts['test'] - params.data.validation_size:,} train, "
        + f"{params.data.validation_size:,} validation, {facts['test']:,} test"
        + " images.",
    ]
    return "\n\n".join(parts) + "\n"


def _recipe(params: Params) -> str:
    """What the network and its training have besides the plain ones, for the first paragraph."""
    model, train = params.model, params.train
    steps, augmentation, stopping = (
        train.learning_rate_steps,
        train.augmentation,
        train.early_stopping,
    )
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
    """How the tickets were found and what they keep, for the first paragraph."""
    criterion = prune.criterion.replace("_", " ")
    schedule = {"iterative": "iterative", "one_shot": "one-shot"}[prune.schedule]
    kept = {
        "rewind": "initial weights"
        if prune.rewind_iteration == 0
        else f"weights at iteration {prune.rewind_iteration}",
        "finetune": "trained weights, trained on at the last learning rate",
        "learning_rate_rewind": f"trained weights, trained again on the schedule from iteration {prune.rewind_iteration}",
    }[prune.strategy]
    return f"{prune.rounds} rounds of {schedule} {prune.scope} pruning by {criterion}; tickets keep their {kept}"


def in_order(variant: str) -> tuple[int, str]:
    """Sorts variants: the dense network, those of this project as listed, one's own by name."""
    known = ("dense", *VARIANTS)
    return known.index(variant) if variant in known else len(known), variant


def _results(runs: pd.DataFrame) -> str:
    accuracy = by_round(runs, "test_accuracy").set_index(["variant", "round"])
    final = by_round(runs, "final_test_accuracy").set_index(["variant", "round"])
    stop = by_round(runs, "early_stop_iteration").set_index(["variant", "round"])
    best = {str(v): best_round(of) for v, of in runs.groupby("variant")}
    lines = [
        "| variant | round | weights remaining | test accuracy (%) | at the end (%) | early-stop iteration |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    order = [
        k for v in sorted(set(runs["variant"]), key=in_order) for k in accuracy.index if k[0] == v
    ]
    for variant, round_ in order:
        key = (variant, round_)
        mark = " (best by validation)" if variant != "dense" and best[variant] == round_ else ""
        lines.append(
            f"| {variant}{mark} | {round_} | {accuracy.loc[key, 'weights_remaining']:.2%} | "
            f"{_range(accuracy.loc[key] * 100, 2)} | {_range(final.loc[key] * 100, 2)} | {_range(stop.loc[key], 0)} |"
        )
    return "\n".join(lines)


def _judgements(judgements: list[Judgement], confidence: float) -> str:
    lines = [
        "| round | weights remaining | accuracy − dense (points) | early stop − dense (iterations) "
        "| accuracy − random_reinit (points) | p | ticket |",
        "|--:|--:|--:|--:|--:|--:|---|",
    ]
    for j in judgements:
        gain = (
            "not trained" if j.reinit_difference is None else _interval(j.reinit_difference, 100, 2)
        )
        outcome = "wins" if j.wins else "loses" if j.loses else _open(j)
        lines.append(
            f"| {j.round} | {j.weights_remaining:.2%} | {_interval(j.accuracy_difference, 100, 2)} | "
            f"{_interval(j.iteration_difference, 1, 0)} | {gain} | {j.p_win:.2g} | {outcome} |"
        )
    return "\n".join(lines)


STABLE = 0.02  # points of test error, as a share (Frankle et al. 2020, section 2)


def _stability(lines: pd.DataFrame) -> str:
    table = instabilities(lines)
    rows = [
        "| round | weights remaining | instability (points) | stable seeds |",
        "|--:|--:|--:|--:|",
    ]
    for (round_, remaining), group in table.groupby(["round", "weights_remaining"]):
        values = group["instability"]
        stable = f"{int((values < STABLE).sum())} of {len(values)}"
        rows.append(
            f"| {round_} | {remaining:.2%} | {_range(100 * values.agg(['mean', 'min', 'max']), 2)} | {stable} |"
        )
    points = lines["position"].nunique()
    explained = (
        "Two copies of each network, trained from the same weights in different data orders: the highest test error on "
        f"the line between them ({points} points) minus the mean error of its ends, mean [smallest, largest] over "
        f"seeds. Below {100 * STABLE:g} points a network is stable (Frankle et al. 2020). Round 0 is the dense network."
    )
    return "\n".join(rows) + "\n\n" + explained


def _open(j: Judgement) -> str:
    """What would decide a round that neither wins nor loses."""
    if j.heading is None:
        return "open: no control"
    if j.seeds_needed is None:
        return f"open: more than {MOST_SEEDS:,} seeds to {j.heading}"
    return f"open: about {j.seeds_needed} seeds to {j.heading}"


def _environment(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return f"- {environment['device']}, {environment['cpu']}, {environment['threads']} thread(s) a run; {versions}"


def _range(row: Any, decimals: int) -> str:
    return f"{row['mean']:.{decimals}f} [{row['min']:.{decimals}f}, {row['max']:.{decimals}f}]"


def _interval(values: tuple[float, float, float], scale: float, decimals: int) -> str:
    mean, low, high = (v * scale for v in values)
    return f"{mean:+.{decimals}f} [{low:+.{decimals}f}, {high:+.{decimals}f}]"


def _points(difference: float) -> str:
    return f"{difference * 100:+.2f} points of"


def _margin(share: float) -> str:
    """0.005 as 0.5 points."""
    number = f"{100 * share:g}"
    return f"{number} point" if number == "1" else f"{number} points"
