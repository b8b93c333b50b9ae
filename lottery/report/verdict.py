"""The verdict: what the seeds together say of the tickets.

It is about the typical seed, the median of differences paired by seed, and rounds are tested in an
order fixed beforehand, so that it comes out the same when somebody repeats it with other seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from lottery.errors import LotteryError
from lottery.params import Params, Prune
from lottery.report.outcomes import learned
from lottery.report.statistics import (
    FEWEST,
    MOST_SEEDS,
    POWER,
    Criterion,
    Median,
    holm,
    median,
    p_loss,
    p_win,
    seeds_needed,
)

Outcome = Literal["wins", "loses", "open", "not tested"]
NOT_LEARNED = "the dense network did not learn"


@dataclass(frozen=True)
class Claim:
    """What is tested, and the words for it."""

    won: str
    lost: str
    subject: str
    iterations: bool  # whether it must not stop later than the dense network
    controls: tuple[str, ...]  # which it must beat by more than the margin


WINNING_TICKET = Claim("winning ticket", "no winning ticket", "ticket", True, ("random_reinit",))
"""Frankle & Carbin 2019, section 1; better than re-initialised after Ma et al. 2021, section 3."""
MATCHING = Claim(
    "matching subnetwork", "no matching subnetwork", "subnetwork", True, ("random_reinit",)
)
"""Frankle et al. 2020, section 2: weights rewound to an early iteration, not to the first."""
PRUNED = Claim(
    "the pruned network matches the dense one",
    "the pruned network does not match the dense one",
    "pruned network",
    False,
    (),
)
"""Renda et al. 2020: the survivors keep their trained values, so nothing here is a lottery
ticket."""
AT_INITIALISATION = Claim(
    "pruning at initialisation passes its sanity checks",
    "pruning at initialisation fails its sanity checks",
    "network pruned at initialisation",
    False,
    ("shuffled_mask", "random_reinit"),
)
"""Frankle et al. 2021, section 5: which weights are kept, and their values, must matter."""


def claim_of(prune: Prune) -> Claim:
    """What an experiment with these parameters can show."""
    if prune.strategy != "rewind":
        return PRUNED
    if prune.at_initialisation:
        return AT_INITIALISATION
    return MATCHING if prune.rewind_iteration else WINNING_TICKET


@dataclass(frozen=True)
class Judgement:
    """What the seeds say of one round.

    ``compared`` holds the ticket's accuracy minus that of each other variant of the same round, and
    of the dense network; ``early_stop_ratio`` its early-stop iteration over the dense network's.
    Intervals are simultaneous over the rounds listed.
    """

    round: int
    weights_remaining: float
    accuracy: float
    compared: Mapping[str, Median]
    early_stop_ratio: Median
    criteria: tuple[Criterion, ...]
    missing: tuple[str, ...]  # controls that the claim needs and that were not trained
    p_win: float
    p_loss: float
    outcome: Outcome
    needed: tuple[Literal["win", "lose"], int | None] | None

    def beyond(self) -> list[str]:
        """Criteria whose test passed while the interval reaches beyond the bound."""
        lows = {
            "accuracy": self.compared["dense"].low,
            "iterations": _minus(self.early_stop_ratio.high),
            **{f"gain over {name}": m.low for name, m in self.compared.items()},
        }
        passed = [c for c in self.criteria if self.outcome == "wins"]
        return [c.name for c in passed if (low := lows[c.name]) is not None and low <= c.bound]


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


@dataclass(frozen=True)
class Conclusion:
    """The verdict, why (where it is not a win), and what led to it; rounds in the order of
    testing."""

    verdict: str
    reason: str
    claim: Claim
    seeds: int
    learned: int  # seeds whose dense network did better than a guess
    dense_accuracy: float
    rounds: tuple[Judgement, ...]

    @property
    def won(self) -> bool:
        """Whether some round wins."""
        return any(j.outcome == "wins" for j in self.rounds)

    @property
    def shown(self) -> Judgement | None:
        """The winning round with the fewest weights, else the sparsest of those listed."""
        some = [j for j in self.rounds if j.outcome == "wins"] or list(self.rounds)
        return min(some, key=lambda j: j.weights_remaining, default=None)


def conclude(runs: pd.DataFrame, params: Params, *, chance: float, test_images: int) -> Conclusion:
    """Tests the rounds listed in ``retrain.rounds``, in that order.

    The ticket of a round *wins* where the typical seed meets all of these, each by a one-sided sign
    test at the confidence:

    - accuracy: ticket minus dense is above ``-report.margin`` (non-inferiority);
    - iterations: its early stop is not later than the dense network's by
      ``report.iteration_margin`` of that or more; a censored ticket does not meet this;
    - gain: its accuracy is above that of its control by more than ``report.margin``.

    Each round is tested at full level until one fails (fixed-sequence testing, Maurer et al. 1995);
    with ``all`` rounds, Holm's correction. A round *loses* where a criterion is refuted,
    Bonferroni-corrected for criteria and rounds. Which criteria belong to a claim: see Claim.

    Args:
        runs: outcomes() of the dense network, the tickets and their controls.
        chance: the accuracy of a guess.
        test_images: images in the test set.

    Raises LotteryError where ``report.iteration_margin`` is below the noise floor, one evaluation.
    """
    claim, alpha = claim_of(params.prune), 1 - params.report.confidence
    of_run = {
        (str(variant), int(number)): group.set_index("seed").sort_index()
        for (variant, number), group in runs.groupby(["variant", "round"])
    }
    dense = of_run["dense", 0]
    good = learned(dense, chance=chance, test_images=test_images)
    facts: dict[str, Any] = {
        "claim": claim,
        "seeds": len(dense),
        "learned": int(good.sum()),
        "dense_accuracy": float(dense["test_accuracy"].mean()),
    }
    if not good.any():
        reason = f"at {facts['dense_accuracy']:.2%} it is not above a guess in any seed"
        return Conclusion(NOT_LEARNED, reason, rounds=(), **facts)
    listed = [r for r in params.retrain_rounds() if ("ticket", r) in of_run]
    if not listed:
        reason = "no ticket was retrained: `ticket` is not among retrain.variants"
        return Conclusion("inconclusive", reason, rounds=(), **facts)
    if claim.iterations:
        _check_noise_floor(params, float(dense.loc[good, "early_stop_iteration"].median()))
    judged = [_judge(of_run, r, good, claim, params, 1 / test_images, len(listed)) for r in listed]
    rounds = _in_sequence(judged, alpha, every=params.retrain.rounds == "all")
    verdict, reason = _overall(rounds, claim, len(dense), params.report.confidence)
    return Conclusion(verdict, reason, rounds=tuple(rounds), **facts)


def _check_noise_floor(params: Params, stop: float) -> None:
    margin, step = params.report.iteration_margin, params.train.evaluate_every
    if 0 < margin * stop < step:  # one that stops before it trains is judged by its accuracy
        least = math.ceil(100 * step / stop - 1e-9) / 100  # rounded up: it must do
        raise LotteryError(
            f"params.yaml: report.iteration_margin: got {margin:g}; accepted: {least:g} or "
            f"more: the dense network stops at iteration {stop:.0f} in the typical seed, and "
            f"evaluations are {step} iterations apart; or train.evaluate_every at most "
            f"{max(1, int(margin * stop))}"
        )


def _judge(
    of_run: Mapping[tuple[str, int], pd.DataFrame],
    number: int,
    good: pd.Series,
    claim: Claim,
    params: Params,
    step: float,
    rounds: int,
) -> Judgement:
    """The judgement of one round, not yet in sequence. Seeds whose dense network did not learn
    fail."""
    ticket, dense = of_run["ticket", number], of_run["dense", 0]
    alpha, margin = 1 - params.report.confidence, params.report.margin
    others = {"dense": dense} | {v: t for (v, r), t in of_run.items() if r == number}
    del others["ticket"]
    gain = {v: (ticket - t)["test_accuracy"].to_numpy() for v, t in _numeric(others).items()}
    stop = dense["early_stop_iteration"]
    ratio = (ticket["early_stop_iteration"] / stop.where(stop > 0)).fillna(np.inf).to_numpy()
    bad = ~good.to_numpy()

    criteria = [Criterion.of("accuracy", gain["dense"], -margin, fails=bad, untold=bad)]
    if claim.iterations:
        late = bad | ticket["censored"].to_numpy() | ticket["diverged"].to_numpy()
        untold = bad | dense["censored"].to_numpy()
        bound = -1 - params.report.iteration_margin
        criteria.append(Criterion.of("iterations", -ratio, bound, fails=late, untold=untold))
    present = [name for name in claim.controls if name in gain]
    for name in present:
        criteria.append(
            Criterion.of(f"gain over {name}", gain[name], margin, fails=bad, untold=bad)
        )
    level = 1 - alpha / rounds
    wins = p_win(criteria) if len(present) == len(claim.controls) else 1.0
    loses = min(1.0, rounds * p_loss(criteria))
    finite = np.where(np.isfinite(ratio), ratio, 1e9)
    return Judgement(
        number,
        float(ticket["weights_remaining"].mean()),
        float(ticket["test_accuracy"].mean()),
        {name: median(values, level, step) for name, values in gain.items()},
        median(finite, level, params.train.evaluate_every / max(float(stop.median()), 1.0)),
        tuple(criteria),
        tuple(name for name in claim.controls if name not in gain),
        wins,
        loses,
        "loses" if loses < alpha else "open",
        seeds_needed(criteria, alpha, alpha / (rounds * len(criteria))),
    )


def _numeric(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {name: table[["test_accuracy"]] for name, table in tables.items()}


def _in_sequence(judged: Sequence[Judgement], alpha: float, *, every: bool) -> list[Judgement]:
    """With their outcomes: each at full level until one fails, or all by Holm's correction."""
    from dataclasses import replace

    corrected = holm([j.p_win for j in judged]) if every else [j.p_win for j in judged]
    found, going = [], True
    for judgement, p in zip(judged, corrected, strict=True):
        outcome = judgement.outcome
        if p < alpha and (every or going):
            outcome = "wins"
        elif not going and not every and outcome == "open":
            outcome = "not tested"
        going = going and outcome == "wins"
        found.append(replace(judgement, p_win=p, outcome=outcome))
    return found


def _overall(
    rounds: Sequence[Judgement], claim: Claim, seeds: int, confidence: float
) -> tuple[str, str]:
    """The verdict and its reason."""
    if any(j.outcome == "wins" for j in rounds):
        return claim.won, ""
    if all(j.outcome == "loses" for j in rounds):
        return claim.lost, f"the {claim.subject} of each round fails one of the criteria"
    missing = rounds[0].missing
    if missing:
        return "inconclusive", f"add to retrain.variants: {', '.join(missing)}"
    if seeds < FEWEST:
        return "inconclusive", f"{seeds} seeds cannot tell: {FEWEST} are the fewest that can"
    first = next(j for j in rounds if j.outcome != "loses")
    return (
        "inconclusive",
        f"{seeds} seeds do not tell, at {confidence:.0%} confidence{_hope(first)}",
    )


def _hope(judgement: Judgement) -> str:
    """The number of seeds that would decide the first open round, for the reader's next
    experiment."""
    if judgement.needed is None:
        return ""
    heading, seeds = judgement.needed
    if seeds is None:
        return f"; the differences are so close to the bounds that {MOST_SEEDS:,} may not either"
    return (
        f"; if these are typical, about {seeds} would let round {judgement.round} {heading} "
        f"(with probability {POWER:.0%})"
    )


def metrics(conclusion: Conclusion) -> dict[str, float | str]:
    """The content of ``reports/metrics.json``: at most ten keys; percent and percentage points.

    ``vs_*`` are medians over seeds of the ticket's accuracy minus another's, in the same round.
    """
    found: dict[str, float | str] = {
        "verdict": conclusion.verdict,
        "won": int(conclusion.won),
        "seeds": conclusion.seeds,
        "dense_accuracy": _rounded(100 * conclusion.dense_accuracy),
    }
    shown = conclusion.shown
    if shown is not None:
        found["ticket_weights"] = _rounded(100 * shown.weights_remaining)
        found["ticket_accuracy"] = _rounded(100 * shown.accuracy)
        found["early_stop_ratio"] = _rounded(shown.early_stop_ratio.value)
        names = {"vs_dense": "dense", "vs_reinit": "random_reinit", "vs_mask": "random_mask"}
        for key, name in names.items():
            if name in shown.compared:
                found[key] = _rounded(100 * shown.compared[name].value)
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def results(runs: pd.DataFrame, conclusion: Conclusion) -> pd.DataFrame:
    """``reports/results.csv``: one row per variant and round.

    Accuracies are shares in [0, 1]. ``ticket_minus`` is the median over seeds of the ticket's
    accuracy minus this variant's in the same round, with its simultaneous interval; in the ticket's
    own rows it is against the dense network, with the opposite sign left as it is: ticket minus
    dense.
    """
    judged = {j.round: j for j in conclusion.rounds}
    rows = []
    for (variant, number), group in runs.groupby(["variant", "round"]):
        row: dict[str, Any] = {
            "variant": variant,
            "round": number,
            "weights_remaining": group["weights_remaining"].mean(),
            "n": len(group),
            "censored": int(group["censored"].sum()),
            "diverged": int(group["diverged"].sum()),
        }
        for column in ("test_accuracy", "final_test_accuracy", "early_stop_iteration"):
            for statistic in ("mean", "std", "min", "max"):
                row[f"{column}_{statistic}"] = group[column].agg(statistic)
        row["initial_test_accuracy_mean"] = group["initial_test_accuracy"].mean()
        judgement = judged.get(int(number))
        against = "dense" if variant == "ticket" else variant
        found = judgement.compared.get(str(against)) if judgement else None
        for name in ("value", "low", "high"):
            row[f"ticket_minus_{name}"] = getattr(found, name) if found else None
        rows.append(row)
    return pd.DataFrame(rows)


def as_json(conclusion: Conclusion, confidence: float) -> dict[str, Any]:
    """``reports/verdict.json``: the verdict and the judgement of each round, in the order of
    testing."""
    from lottery.report.statistics import at_most

    shown = conclusion.shown
    return {
        "verdict": conclusion.verdict,
        "reason": conclusion.reason,
        "round": shown.round if shown else None,
        "seeds": conclusion.seeds,
        "learned": conclusion.learned,
        "rounds": [
            {
                "round": j.round,
                "weights_remaining": _rounded(j.weights_remaining),
                "outcome": j.outcome,
                "p_win": _rounded(j.p_win),
                "p_loss": _rounded(j.p_loss),
                "early_stop_ratio": _plain(j.early_stop_ratio),
                "accuracy_minus": {name: _plain(m) for name, m in j.compared.items()},
                "criteria": [
                    {
                        "name": c.name,
                        "bound": c.bound,
                        "misses": c.misses,
                        "misses_at_most": _rounded(at_most(c.misses, c.seeds, confidence)),
                        "p": _rounded(c.p_above()),
                    }
                    for c in j.criteria
                ],
            }
            for j in conclusion.rounds
        ],
    }


def _plain(found: Median) -> list[float | None]:
    return [None if v is None else _rounded(v) for v in (found.value, found.low, found.high)]
