"""The verdict: what the seeds together say of the tickets.

It is about the typical seed, the median of differences paired by seed, and rounds are tested in an
order fixed beforehand, so that it comes out the same when somebody repeats it with other seeds.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Literal, NamedTuple

import pandas as pd

from lottery.params import Params, Prune
from lottery.report import statistics
from lottery.report.outcomes import GUESS, learned
from lottery.report.statistics import MOST_SEEDS, POWER, Criterion, Median, median

Outcome = Literal["wins", "loses", "open", "not tested"]
NOT_LEARNED = "the dense network is not shown to have learned"


class Claim(NamedTuple):
    """What is tested, and the words for it."""

    won: str
    lost: str
    subject: str
    iterations: bool = False  # whether it must not stop later than the dense network


def claim_of(prune: Prune) -> Claim:
    """What an experiment with these parameters can show."""
    if prune.strategy != "rewind":  # Renda et al. 2020: the survivors keep their trained values
        matches = "the pruned network {} the dense one".format
        return Claim(matches("matches"), matches("does not match"), "pruned network")
    if prune.at_initialisation:  # Frankle et al. 2021, section 5: which are kept, and their values
        at = f"iteration {prune.rewind_iteration}" if prune.rewind_iteration else "initialisation"
        checks = f"pruning at {at} {{}} its sanity checks".format
        return Claim(checks("passes"), checks("fails"), f"network pruned at {at}")
    if prune.rewind_iteration:  # Frankle et al. 2020, section 2: to an early iteration
        return Claim("matching subnetwork", "no matching subnetwork", "subnetwork", True)
    # Frankle & Carbin 2019, section 1; better than re-initialised after Ma et al. 2021, section 3
    return Claim("winning ticket", "no winning ticket", "ticket", True)


class Judgement(NamedTuple):
    """What the seeds say of one round.

    ``compared`` holds the ticket's accuracy minus that of each other variant of the same round, and
    of the dense network; ``early_stop_ratio`` its early-stop iteration over the dense network's,
    of the seeds whose dense network learned: infinite where the ticket diverged, was cut off or
    improving. Intervals are simultaneous over the rounds listed.
    """

    round: int
    weights_remaining: float
    accuracy: float
    compared: Mapping[str, Median]
    early_stop_ratio: Median
    criteria: list[Criterion]
    missing: str  # what the claim needs and there is not: a control, or a measure; else empty
    p_win: float
    p_loss: float
    outcome: Outcome
    needed: tuple[Literal["win", "lose"], int | None] | None

    @property
    def beyond(self) -> list[str]:
        """Criteria that this winning round meets while the interval reaches beyond the bound."""
        late = self.early_stop_ratio.high
        lows = {
            "accuracy": self.compared["dense"].low,
            "iterations": None if late is None else -late,
            **{f"gain over {name}": m.low for name, m in self.compared.items()},
        }
        met = self.criteria if self.outcome == "wins" else ()
        return [c.name for c in met if (low := lows[c.name]) is not None and low <= c.bound]


class Conclusion(NamedTuple):
    """The verdict, why where it is not a win, and what led to it; rounds as they are tested."""

    verdict: str
    reason: str
    claim: Claim
    seeds: int
    learned: int  # seeds whose dense network did better than a guess
    dense_accuracy: float
    rounds: list[Judgement]

    @property
    def won(self) -> bool:
        """Whether some round wins."""
        return any(j.outcome == "wins" for j in self.rounds)

    @property
    def shown(self) -> Judgement | None:
        """The winning round with the fewest weights, else the sparsest of those listed."""
        some = [j for j in self.rounds if j.outcome == "wins"] or self.rounds
        return min(some, key=lambda j: j.weights_remaining, default=None)


def conclude(runs: pd.DataFrame, params: Params, *, chance: float, test_images: int) -> Conclusion:
    """Tests the rounds listed in ``retrain.rounds``, in that order.

    The ticket of a round *wins* where the typical seed meets all of these, each by a one-sided sign
    test at the confidence:

    - accuracy: ticket minus dense is above ``-report.margin`` (non-inferiority);
    - iterations: its early stop is not later than the dense network's by
      ``report.iteration_margin`` of that or more; one censored or improving does not meet this;
    - gain: its accuracy is above that of its control by more than ``report.margin``.

    Each round is tested at full level until one fails (fixed-sequence testing, Maurer et al. 1995);
    with ``all`` rounds, Holm's correction. A round *loses* where a criterion is refuted,
    Bonferroni-corrected for criteria and rounds. Which criteria belong to a claim: see Claim.

    Args:
        runs: outcomes() of the dense network, the tickets and their controls.
        chance: the accuracy of a guess.
        test_images: images in the test set.

    Where ``report.iteration_margin`` is below the distance of two evaluations, or tickets begin
    after it, no round wins, and none loses by its iterations.
    """
    claim, alpha = claim_of(params.prune), 1 - params.report.confidence
    tables = dict(list(runs.set_index("seed").sort_index().groupby(["variant", "round"])))
    dense = tables["dense", 0]
    good = learned(dense["test_accuracy"], chance=chance, test_images=test_images)
    known = claim, len(dense), int(good.sum()), float(dense["test_accuracy"].mean())
    if not good.any():
        few = f", and {test_images} test examples cannot show it" * (chance**test_images >= GUESS)
        why = f"at {known[-1]:.2%} it is above a guess in no seed, by a test at {GUESS:.1%}{few}"
        return Conclusion(NOT_LEARNED, why, *known, [])
    listed = [number for number in params.retrain_rounds() if ("ticket", number) in tables]
    if not listed:
        return Conclusion("inconclusive", params.missing(), *known, [])
    stop = float(dense.loc[good, "early_stop_iteration"].median())
    unmeasurable = _unmeasurable(params, stop) if claim.iterations else ""
    step = 1 / test_images
    judged = [_judge(tables, n, good, params, step, len(listed), unmeasurable) for n in listed]
    rounds = _in_sequence(judged, alpha, every=params.retrain.rounds == "all")
    if any(j.outcome == "wins" for j in rounds):
        return Conclusion(claim.won, "", *known, rounds)
    if all(j.outcome == "loses" for j in rounds):
        why = f"the {claim.subject} of each round fails one of the criteria"
        return Conclusion(claim.lost, why, *known, rounds)
    first = next((j for j in rounds if j.outcome == "open"), None)
    why = f"round {rounds[0].round} fails one of the criteria, so that none after it can win"
    if first is not None:
        level = f"{100 * params.report.confidence:g}%"
        why = f"{len(dense)} seeds do not tell, at {level} confidence{_hope(first)}"
    return Conclusion("inconclusive", params.missing() or unmeasurable or why, *known, rounds)


def fewest_to_lose(params: Params) -> int:
    """The least number of seeds that can show every round to lose, if all refute one criterion."""
    controls = set(params.prune.controls) & set(params.retrain.variants)
    criteria = 1 + claim_of(params.prune).iterations + len(controls)
    tests = criteria * len(params.retrain_rounds())
    return max(statistics.FEWEST, math.floor(math.log2(tests / (1 - params.report.confidence))) + 1)


def _unmeasurable(params: Params, stop: float) -> str:
    """Why a margin of iterations cannot be measured; empty where it can."""
    margin, step = Fraction(str(params.report.iteration_margin)), params.train.evaluate_every
    if (begun := params.prune.rewind_iteration) and begun >= (1 + margin) * Fraction(stop):
        return (
            f"each {claim_of(params.prune).subject} begins at iteration {begun}, and the dense "
            f"network stops at iteration {stop:.0f} in the typical seed: none can be in time"
        )
    if not 0 < margin * Fraction(stop) < step:  # one that stops untrained is judged by accuracy
        return ""
    least, most = math.ceil(100 * step / Fraction(stop)) / 100, math.floor(margin * Fraction(stop))
    ways = [f"train.evaluate_every of at most {most}"] * (most > 0)
    ways += [f"a margin of {least:g}"] * (least < 1)
    return (
        f"a report.iteration_margin of {float(margin):g} cannot be measured: the dense network "
        f"stops at iteration {stop:.0f} in the typical seed, and evaluations are {step} iterations "
        f"apart{'; what could be: ' * bool(ways)}{', or '.join(ways)}"
    )


def _judge(
    tables: Mapping[tuple[str, int], pd.DataFrame],
    number: int,
    good: pd.Series,
    params: Params,
    step: float,
    rounds: int,
    unmeasurable: str,
) -> Judgement:
    """The judgement of one round, not yet in sequence.

    Args:
        tables: outcomes by variant and round, indexed by seed.
        good: whether a seed's dense network learned; where not, the seed fails.
        step: between two accuracies.
        rounds: how many are judged.
        unmeasurable: why the margin of iterations cannot be measured; empty where it can.
    """
    margin, alpha = params.report.margin, 1 - params.report.confidence
    ticket, dense = tables["ticket", number], tables["dense", 0]
    gain = {
        variant: (ticket["test_accuracy"] - table["test_accuracy"]).to_numpy()
        for (variant, of_round), table in tables.items()
        if of_round in (0, number) and variant != "ticket"
    }
    stop, bad = dense["early_stop_iteration"], ~good.to_numpy()
    # stopped while the loss still fell: their early stops are lower bounds
    on, dense_on = (t["censored"] | t["improving"] for t in (ticket, dense))
    ratio = (ticket["early_stop_iteration"] / stop).fillna(math.inf)
    criterion = partial(Criterion, fails=bad, untold=bad)
    criteria = [criterion("accuracy", gain["dense"], -margin)]
    if claim_of(params.prune).iterations:
        late = bad | on.to_numpy()
        untold = bad | dense_on.to_numpy() | bool(unmeasurable)
        bound = -1 - params.report.iteration_margin
        criteria.append(Criterion("iterations", -ratio.to_numpy(), bound, late, untold))
    apart = params.train.evaluate_every / max(float(stop[good].median()), 1.0)
    trained = [name for name in params.prune.controls if name in gain]
    criteria += [criterion(f"gain over {name}", gain[name], margin) for name in trained]
    controlled = len(trained) == len(params.prune.controls)
    missing = "iterations tell nothing" * bool(unmeasurable) if controlled else "no control"
    level, loses = 1 - alpha / rounds, min(1.0, rounds * statistics.p_loss(criteria))
    return Judgement(
        number,
        float(ticket["weights_remaining"].mean()),
        float(ticket["test_accuracy"].mean()),
        {name: median(values, level, step) for name, values in gain.items()},
        _not_negative(median(ratio.mask(on, math.inf)[good].to_numpy(), level, apart)),
        criteria,
        missing,
        1.0 if missing else statistics.p_win(criteria),
        loses,
        "loses" if loses < alpha else "open",
        statistics.seeds_needed(
            criteria,
            alpha / (rounds if params.retrain.rounds == "all" else 1),  # Holm's first step
            alpha / (rounds * len(criteria)),
        ),
    )


def _not_negative(ratio: Median) -> Median:
    return ratio._replace(low=ratio.low and max(ratio.low, 0.0))


def _in_sequence(judged: Sequence[Judgement], alpha: float, *, every: bool) -> list[Judgement]:
    """With their outcomes: each at full level until one fails, or all by Holm's correction."""
    p_values = [j.p_win for j in judged]
    rounds, going = [], True
    for judgement, p in zip(judged, statistics.holm(p_values) if every else p_values, strict=True):
        outcome = judgement.outcome
        if p < alpha and going:
            outcome = "wins"
        elif outcome == "open" and not going:
            outcome = "not tested"
        going = every or outcome == "wins"
        rounds.append(judgement._replace(p_win=p, outcome=outcome))
    return rounds


def _hope(judgement: Judgement) -> str:
    """The number of seeds that would decide a round, for the reader's next experiment."""
    if judgement.needed is None:
        return ""
    heading, seeds = judgement.needed
    if seeds is None:
        return f"; if these are typical, {MOST_SEEDS:,} may not either"
    return (
        f"; if these are typical, about {seeds} would let round {judgement.round} {heading} "
        f"(with probability {POWER:.0%})"
    )
