"""Histories in, statistics and verdict out.

The test set chooses nothing: where a run stops early and which round is best are decided on validation
data; accuracy is then read off the test set.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

Verdict = Literal["winning ticket", "inconclusive", "no winning ticket"]

KEYS = ["seed", "variant", "round"]


def outcomes(history: pd.DataFrame) -> pd.DataFrame:
    """One row a run: where it stops early, and its accuracy there and at the end.

    The early-stop iteration is that of the lowest validation loss over the whole run (the first of
    several). Columns: KEYS, ``weights_remaining``, ``early_stop_iteration``, ``validation_accuracy`` and
    ``test_accuracy`` there, ``final_test_accuracy``.
    """
    history = history.sort_values([*KEYS, "iteration"], ignore_index=True)
    stop = history.loc[history.groupby(KEYS)["validation_loss"].idxmin()].set_index(KEYS)
    last = history.groupby(KEYS).last()
    table = stop[["weights_remaining", "validation_accuracy", "test_accuracy"]].copy()
    table["early_stop_iteration"] = stop["iteration"]
    table["final_test_accuracy"] = last["test_accuracy"]
    return table.reset_index()


def spread(values: pd.Series) -> dict[str, float]:
    """Mean, smallest and largest value, and their number."""
    return {
        "mean": _number(values.mean()),
        "min": _number(values.min()),
        "max": _number(values.max()),
        "n": len(values),
    }


def _number(value: float) -> float:
    return float(f"{value:.6g}")


def best_round(runs: pd.DataFrame) -> int:
    """The round of the highest mean validation accuracy; of equals the sparsest."""
    means = runs.groupby("round")["validation_accuracy"].mean().round(12)
    return int(means[means == means.max()].index.max())


@dataclass(frozen=True)
class Judgement:
    """What the seeds together say of the tickets of one round.

    Differences are paired by seed: mean, and the two-sided interval at the report's confidence (not
    corrected for the number of rounds). p-values are corrected for it. Where the round neither wins nor
    loses, ``seeds_needed`` is the number of seeds with which it probably would, and ``heading`` which of the two.
    """

    round: int
    weights_remaining: float
    accuracy_difference: tuple[float, float, float]  # ticket − dense: mean, low, high
    iteration_difference: tuple[float, float, float]  # ticket − dense
    reinit_difference: tuple[float, float, float] | None  # ticket − random_reinit, in accuracy
    p_win: float
    p_loss: float
    wins: bool
    loses: bool
    heading: Literal["win", "lose"] | None = None
    seeds_needed: int | None = None  # None: decided already, or more than MOST_SEEDS


@dataclass(frozen=True)
class Criterion:
    """One of the things that must hold of a ticket: that the mean of ``values``, one a seed, is above ``bound``.

    Measurements lie on a grid of width ``step``, so that a few seeds may agree by chance: their standard
    deviation counts as at least one step.
    """

    values: np.ndarray
    bound: float
    step: float

    @property
    def excess(self) -> float:
        return float(self.values.mean()) - self.bound

    @property
    def deviation(self) -> float:
        return max(float(self.values.std(ddof=1)), self.step)

    def p_above(self) -> float:
        """p-value of the one-sided t-test whose alternative is that the mean is above the bound."""
        from scipy import stats

        n = len(self.values)
        return float(stats.t.sf(self.excess / self.deviation * n**0.5, n - 1))

    def p_below(self) -> float:
        """The same, of its being below."""
        return Criterion(-self.values, -self.bound, self.step).p_above()

    def power(self, seeds: int, alpha: float) -> float:
        """Probability that so many seeds tell on which side the mean is, were the observed mean and deviation true.

        Of the one-sided t-test at ``alpha``, by the noncentral t distribution (Cohen 1988, chapter 2).
        """
        from scipy import stats

        shift = abs(self.excess) / self.deviation * seeds**0.5
        if shift > 30:  # beyond the noncentral distribution's numerics, and all but certain
            return 1.0
        return float(stats.nct.sf(stats.t.isf(alpha, seeds - 1), seeds - 1, shift))


@dataclass(frozen=True)
class Conclusion:
    verdict: Verdict
    reason: str
    rounds: list[Judgement]

    @property
    def smallest(self) -> Judgement | None:
        """The winning ticket with the fewest weights."""
        winners = [j for j in self.rounds if j.wins]
        return min(winners, key=lambda j: j.weights_remaining, default=None)


def conclude(
    runs: pd.DataFrame, *, margin: float, confidence: float, resolution: float
) -> Conclusion:
    """Whether a winning ticket was found.

    The ticket of a round *wins* where all of these hold at the confidence, by one-sided paired t-tests
    over seeds, Holm-corrected for the number of rounds:

    - its accuracy is not lower than the dense network's by ``margin`` or more (non-inferiority);
    - its early-stop iteration is not later by ``resolution`` or more: the distance of two evaluations,
      below which iterations cannot be told apart;
    - its accuracy is higher than that of its ``random_reinit`` control by more than ``margin``
      (Ma et al. 2021, section 3).

    It *loses* where one of them is refuted (Bonferroni-corrected for the three). The verdict is "winning
    ticket" where a round wins, "no winning ticket" where each loses, else "inconclusive".

    Args:
        runs: outcomes() of the dense network, the tickets and their controls.
        margin: in accuracy (0.005 is half a percentage point).
        resolution: in iterations.
    """
    present = set(runs["variant"])
    if "ticket" not in present:
        return Conclusion(
            "inconclusive", "no ticket was retrained: `ticket` is not among retrain.variants", []
        )
    rounds = sorted(runs.loc[runs["variant"] == "ticket", "round"].unique())
    by_seed = {
        (variant, int(round_)): group.set_index("seed").sort_index()
        for (variant, round_), group in runs.groupby(["variant", "round"])
    }
    dense = by_seed["dense", 0]
    alpha = 1 - confidence
    seeds = len(dense)
    if seeds < 2:
        return Conclusion("inconclusive", "one seed has no spread: at least two are needed", [])

    step = _step(runs["test_accuracy"])
    judgements: list[dict[str, Any]] = []
    all_criteria: list[list[Criterion]] = []
    for round_ in rounds:
        ticket = by_seed["ticket", round_]
        control = by_seed.get(("random_reinit", round_))
        accuracy = (ticket["test_accuracy"] - dense["test_accuracy"]).to_numpy()
        iteration = (ticket["early_stop_iteration"] - dense["early_stop_iteration"]).to_numpy()
        criteria = [
            Criterion(accuracy, -margin, step),
            Criterion(-iteration, -resolution, resolution),
        ]
        gain = None
        if control is not None:
            gain = (ticket["test_accuracy"] - control["test_accuracy"]).to_numpy()
            criteria.append(Criterion(gain, margin, step))
        all_criteria.append(criteria)
        judgements.append(
            {
                "round": int(round_),
                "weights_remaining": float(ticket["weights_remaining"].mean()),
                "accuracy_difference": interval(accuracy, confidence),
                "iteration_difference": interval(iteration, confidence),
                "reinit_difference": None if gain is None else interval(gain, confidence),
                # an intersection-union test: all three must hold
                "p_win": 1.0 if control is None else max(c.p_above() for c in criteria),
                "p_loss": min(1.0, len(criteria) * min(c.p_below() for c in criteria)),
            }
        )
    corrected = holm([j["p_win"] for j in judgements])
    made = []
    for judgement, criteria, p in zip(judgements, all_criteria, corrected, strict=True):
        made.append(
            Judgement(
                **{**judgement, "p_win": p}, wins=p < alpha, loses=judgement["p_loss"] < alpha
            )
        )
        if not (made[-1].wins or made[-1].loses) and len(criteria) == 3:
            heading, seeds_ = seeds_needed(criteria, len(rounds), alpha)
            made[-1] = replace(made[-1], heading=heading, seeds_needed=seeds_)
    if any(j.wins for j in made):
        return Conclusion("winning ticket", "", made)
    if all(j.loses for j in made):  # each round must lose: no correction is needed
        return Conclusion("no winning ticket", "every round fails one of the criteria", made)
    if "random_reinit" not in present:
        why = "the tickets have no random_reinit control: add it to retrain.variants"
    else:
        why = f"{seeds} seeds do not tell, at {confidence:.0%} confidence; " + _what_would(made)
    return Conclusion("inconclusive", why, made)


def interval(differences: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean and two-sided t-interval of paired differences, one a seed."""
    from scipy import stats

    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / len(differences) ** 0.5
    half = float(stats.t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return mean, mean - half, mean + half


MOST_SEEDS = 1000
POWER = 0.8


def seeds_needed(
    criteria: Sequence[Criterion], rounds: int, alpha: float
) -> tuple[Literal["win", "lose"], int | None]:
    """How many seeds would decide a round with probability POWER, if what was observed is the truth; None: too many.

    A round that satisfies all criteria on average is heading for a win: each criterion must be shown, at
    the first and hardest step of Holm's correction. Any other is heading for a loss: one criterion must be refuted.
    """
    if all(c.excess > 0 for c in criteria):
        heading: Literal["win", "lose"] = "win"

        def probability(seeds: int) -> float:
            return 1 - sum(
                1 - c.power(seeds, alpha / rounds) for c in criteria
            )  # at least: they may miss together

    else:
        heading = "lose"

        def probability(seeds: int) -> float:
            return max(
                (c.power(seeds, alpha / len(criteria)) for c in criteria if c.excess < 0),
                default=0.0,
            )

    seeds = 2 + bisect_left(
        range(2, MOST_SEEDS + 1), True, key=lambda seeds: probability(seeds) >= POWER
    )
    return heading, seeds if seeds <= MOST_SEEDS else None


def _what_would(judgements: list[Judgement]) -> str:
    """The smallest number of seeds that would decide the experiment, for the reader's next one."""
    wins = [j for j in judgements if j.heading == "win" and j.seeds_needed]
    if wins:
        best = min(wins, key=lambda j: (j.seeds_needed or 0, j.weights_remaining))
        return (
            f"if their differences are typical, {best.seeds_needed} would show a winning ticket at "
            f"{best.weights_remaining:.2%} of the weights (with probability {POWER:.0%})"
        )
    undecided = [j for j in judgements if not j.loses]
    needed = [j.seeds_needed for j in undecided]
    if all(needed):
        return (
            f"if their differences are typical, {max(n for n in needed if n)} would show that no round's ticket wins "
            f"(each with probability {POWER:.0%})"
        )
    return f"the differences lie so close to the bounds that {MOST_SEEDS:,} seeds would not either"


def _step(accuracies: pd.Series) -> float:
    """The distance of two neighbouring accuracies: one image of the test set, as far as can be seen."""
    gaps = np.diff(np.unique(accuracies.round(9)))
    return float(gaps.min()) if len(gaps) else 1e-9


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979)."""
    order = np.argsort(p_values)
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(p) for p in corrected]


def metrics(runs: pd.DataFrame, conclusion: Conclusion) -> dict[str, Any]:
    """The content of ``reports/metrics.json``."""
    dense = runs[runs["variant"] == "dense"]
    variants = {}
    for name, of_variant in runs[runs["variant"] != "dense"].groupby("variant"):
        best = of_variant[of_variant["round"] == best_round(of_variant)]
        variants[str(name)] = {
            "best": {
                "round": int(best["round"].iloc[0]),
                "weights_remaining": _number(best["weights_remaining"].mean()),
                "test_accuracy": spread(best["test_accuracy"]),
                "final_test_accuracy": spread(best["final_test_accuracy"]),
                "early_stop_iteration": spread(best["early_stop_iteration"]),
            }
        }
    smallest = conclusion.smallest
    return {
        "dense": {
            name: spread(dense[name])
            for name in ("test_accuracy", "final_test_accuracy", "early_stop_iteration")
        },
        "variants": variants,
        "smallest_winning_ticket": {
            "round": smallest.round if smallest else None,
            "weights_remaining": _number(smallest.weights_remaining) if smallest else None,
        },
        "verdict": conclusion.verdict,
    }


def by_round(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """``variant, round, weights_remaining, mean, min, max, n`` of a column, over seeds."""
    groups = runs.groupby(["variant", "round"])
    table = groups[column].agg(["mean", "min", "max", "count"]).rename(columns={"count": "n"})
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    return table.reset_index()


def curves(history: pd.DataFrame, column: str) -> pd.DataFrame:
    """``variant, round, weights_remaining, iteration, mean, min, max`` of a column, over seeds.

    Iterations that not all seeds reached (runs that stopped early) are left out.
    """
    groups = history.groupby(["variant", "round", "iteration"])
    table = groups[column].agg(["mean", "min", "max", "count"])
    table.insert(0, "weights_remaining", groups["weights_remaining"].mean())
    table = table.reset_index()
    return table[table["count"] == history["seed"].nunique()].drop(columns="count")


def instabilities(lines: pd.DataFrame) -> pd.DataFrame:
    """``seed, round, weights_remaining, instability`` of the lines in ``stability.csv``; in accuracy."""
    groups = lines.sort_values("position").groupby(["seed", "round", "weights_remaining"])[
        "test_accuracy"
    ]
    ends = (groups.first() + groups.last()) / 2
    return (ends - groups.min()).rename("instability").reset_index()


def spread_out(rounds: Sequence[int], most: int) -> list[int]:
    """At most so many of the rounds, evenly spread, with the first and the last."""
    rounds = sorted(rounds)
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[i] for i in np.unique(np.linspace(0, len(rounds) - 1, most).round().astype(int))]
