"""Histories in, one row a run out; and tables of these by round.

Where a run stops early is decided on validation data; accuracy is then read off the test set.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lottery.params import EarlyStopping

KEYS = ["seed", "variant", "round"]
GUESS = 0.001  # the level at which an accuracy is above that of a guess
LINES = ["seed", "round", "between", "weights_remaining"]


def outcomes(
    history: pd.DataFrame, *, chance: float, stopping: EarlyStopping | None = None
) -> pd.DataFrame:
    """One row a run: where it stops early, and its accuracy there and at the end.

    The early-stop iteration is that of the lowest validation loss over the whole run (the first of
    several). A run is *censored* where that is its last evaluation and its length, not its
    patience, ended it: it would have gone on. It has *diverged* where its loss is no longer finite
    at its last evaluation: its accuracy is then ``chance``, and its early stop missing. It was
    *improving* where its patience ended it at its lowest loss, as it fell by less than
    ``min_delta``.

    Columns: KEYS, ``weights_remaining``, ``early_stop_iteration``, ``validation_accuracy``,
    ``test_accuracy`` there, ``final_test_accuracy`` at the end, ``initial_test_accuracy`` before
    training, ``censored``, ``diverged``, ``improving``.

    Args:
        history: one row a (seed, variant, round, iteration).
        chance: the accuracy of a guess, in [0, 1].
        stopping: the rule by which runs ended early; None: all ran to their length.
    """
    rows = []
    ordered = history.sort_values([*KEYS, "iteration"], ignore_index=True)
    for key, run in ordered.groupby(KEYS, sort=True):
        losses = run["validation_loss"].to_numpy()
        diverged = bool(np.isnan(losses[-1]))
        stop = len(losses) - 1 if diverged else int(losses.argmin())
        patience = stopping if key[1] != "dense_longer" else None  # which nothing stops early
        ended = diverged or (patience is not None and patience.ends(losses))
        at, last, lowest_last = run.iloc[stop], run.iloc[-1], stop == len(losses) - 1
        rows.append(
            {
                **dict(zip(KEYS, key, strict=True)),
                "weights_remaining": at["weights_remaining"],
                "early_stop_iteration": np.nan if diverged else at["iteration"],
                "validation_accuracy": chance if diverged else at["validation_accuracy"],
                "test_accuracy": chance if diverged else at["test_accuracy"],
                "final_test_accuracy": chance if diverged else last["test_accuracy"],
                "initial_test_accuracy": run.iloc[0]["test_accuracy"],
                "censored": lowest_last and not ended,
                "diverged": diverged,
                "improving": lowest_last and ended and not diverged,
            }
        )
    return pd.DataFrame(rows)


def guess(facts: Mapping[str, Any]) -> float:
    """The accuracy of the best constant answer: the share of the test images' largest class.

    ``facts``: the content of ``dataset.json``.
    """
    counts = facts.get("test_class_counts", facts["class_counts"])
    return float(max(counts) / sum(counts))


def learned(accuracy: pd.Series, *, chance: float, test_images: int) -> pd.Series:
    """Whether accuracies are above a guess on the test images: a binomial test at GUESS."""
    hits = (accuracy * test_images).round()
    return pd.Series(stats.binom.sf(hits - 1, test_images, chance) < GUESS, index=accuracy.index)


def by_round(runs: pd.DataFrame, column: str, *within: str) -> pd.DataFrame:
    """``variant, round, weights_remaining, mean, min, max, n`` of a column, over seeds.

    With a row, and a column after ``round``, for what is told apart ``within`` a round.
    """
    groups = runs.groupby(["variant", "round", *within])
    table = groups[column].agg(["mean", "min", "max", "count"]).rename(columns={"count": "n"})
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    return table.reset_index()


def curves(history: pd.DataFrame, column: str) -> pd.DataFrame:
    """``variant, round, iteration, weights_remaining, mean, min, max`` of a column, over seeds.

    Iterations that not all seeds reached (runs that stopped early) are left out.
    """
    table = by_round(history, column, "iteration")
    return table[table["n"] == history["seed"].nunique()].drop(columns="n")


def curve_limits(table: pd.DataFrame) -> tuple[float, float]:
    """The range of accuracies in which curves are drawn: without the first climb."""
    later = table[table["iteration"] > 0]
    low, high = float(later["min"].quantile(0.1)), float(later["max"].max())
    if not low < high:  # one value, or none at all
        low, high = (low - 0.05, low + 0.05) if low == low else (0.0, 1.0)
    return low - 0.02 * (high - low), high + 0.05 * (high - low)


def of_tickets(table: pd.DataFrame) -> pd.Series:
    """The weights remaining of each round's tickets, mean, by round; a control may have others."""
    return table[table["variant"] == "ticket"].groupby("round")["weights_remaining"].mean()


def shown(history: pd.DataFrame) -> pd.DataFrame:
    """The part of the history whose curves are drawn: the dense network and at most four rounds."""
    rounds = history.loc[history["round"] > 0, "round"].unique().tolist()
    return history[history["round"].isin([0, *spread_out(rounds, 4)])]


def plots(
    runs: pd.DataFrame, pruning: pd.DataFrame, history: pd.DataFrame, density: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """``reports/plots/*.csv`` by name: accuracy, early_stop, training_curves, density.

    Args:
        pruning: outcomes of the networks trained while pruning, drawn beside those retrained.
    """
    both = pd.concat([runs, pruning])
    by_layer = density.groupby(["round", "layer"], sort=False)["weights_remaining"].mean()
    return {
        "accuracy": by_round(both, "test_accuracy"),
        "early_stop": by_round(both, "early_stop_iteration"),
        "training_curves": curves(shown(history), "test_accuracy"),
        "density": by_layer.reset_index(),
    }


def anatomy(density: pd.DataFrame) -> pd.DataFrame:
    """``variant, round, effective_weights_remaining, empty_layers`` of each round's tickets.

    The share of all prunable weights that lie on a path of survivors from input to output, mean
    over seeds (Vysogorets & Kempe 2023); and in how many layers, in the worst seed, none survives
    (layer collapse, Tanaka et al. 2020).
    """
    by_seed = density.groupby(["round", "seed"])
    total = by_seed.last()  # the row of the whole network
    empty = density["surviving"].eq(0).groupby([density["round"], density["seed"]]).sum()
    columns = {
        "effective_weights_remaining": total["effective"] / total["weights"],
        "empty_layers": empty - total["surviving"].eq(0),
    }
    by_round = pd.DataFrame(columns).groupby("round")
    table = by_round.agg({"effective_weights_remaining": "mean", "empty_layers": "max"})
    table.insert(0, "variant", "ticket")
    return table.reset_index()


def instabilities(lines: pd.DataFrame) -> pd.DataFrame:
    """``seed, round, between, weights_remaining, instability, barrier, worse_end`` of
    ``stability.csv``.

    Of test error, as a share, and of training loss, in nats: the highest on the line minus the mean
    of its ends (Frankle et al. 2020, section 2); and the lower of the ends' test accuracies.
    """
    lines = lines.fillna({"train_loss": np.inf})  # a loss that is not finite is a barrier
    groups = lines.sort_values("position").groupby(LINES)
    accuracy, loss = groups["test_accuracy"], groups["train_loss"]
    columns = {
        "instability": (accuracy.first() + accuracy.last()) / 2 - accuracy.min(),
        "barrier": (loss.max() - (loss.first() + loss.last()) / 2).fillna(np.inf),
        "worse_end": np.minimum(accuracy.first(), accuracy.last()),
    }
    return pd.DataFrame(columns).reset_index()


def spread_out(rounds: Sequence[int], most: int) -> list[int]:
    """At most so many of the rounds, evenly spread, with the first and the last."""
    rounds, count = sorted(rounds), min(len(rounds), most)
    return [rounds[i] for i in np.linspace(0, len(rounds) - 1, count).round().astype(int)]
