"""The verdict: about the typical seed, wrong in at most 5 % of experiments, and said in fitting words."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from clones import tiny
from scipy import stats

from lottery.params import validate
from lottery.report import summary, text, verdict
from lottery.report.statistics import Criterion, at_most, holm, median, p_win, power

CHANCE, TEST = 0.1, 1000
GOOD = {"accuracy": 0.0, "ratio": 0.7, "gain": 0.02}
BOUNDS = {"accuracy": -0.005, "ratio": 1.3, "gain": 0.005}


def params_of(rounds=(2, 1), changes=None):
    """TINY's parameters with these rounds and other changes."""
    listed = {"prune.rounds": 9, "retrain.rounds": "all" if rounds == "all" else list(rounds)}
    return validate(tiny(listed | (changes or {})))


def experiment(seeds=8, rounds=None, dense=0.9, dense_flags=None):
    """outcomes() of an experiment: each round's paired differences, a number or one a seed."""
    tables = []

    def add(variant, number, accuracy, stop, flags=None):
        row = {"seed": np.arange(seeds), "variant": variant, "round": number}
        row |= dict.fromkeys(["censored", "diverged", "improving"], False)
        row |= {"weights_remaining": 0.8**number, "initial_test_accuracy": 0.1}
        same = ("test_accuracy", "final_test_accuracy", "validation_accuracy")
        row |= dict.fromkeys(same, accuracy) | {"early_stop_iteration": stop}
        table = pd.DataFrame(row | (flags or {}))
        table["early_stop_iteration"] = table["early_stop_iteration"].mask(table["diverged"])
        tables.append(table)

    add("dense", 0, dense, 40, dense_flags)
    for number, one in (rounds or {1: GOOD, 2: GOOD}).items():
        ticket = dense + np.asarray(one["accuracy"], float)
        add("ticket", number, ticket, 40 * np.asarray(one["ratio"]), one.get("flags"))
        for control in one.get("controls", ["random_reinit"]):
            add(control, number, ticket - one["gain"], 80)
    return pd.concat(tables, ignore_index=True)


def concluded(runs, params=None):
    params = (params or params_of()).model_copy(update={"seeds": sorted(set(runs["seed"]))})
    return verdict.conclude(runs, params, chance=CHANCE, test_images=TEST)


def judged(changes, seeds=8, **options):
    """The judgement of one round, GOOD but for these changes."""
    runs = experiment(seeds, {1: GOOD | changes}, **options)
    return concluded(runs, params_of([1])).rounds[0]


def outcomes_of(runs, params=None):
    return [(j.round, j.outcome) for j in concluded(runs, params).rounds]


# The level of the test: false winners on nulls, whose median lies on the bound of a criterion


MIDDLE = -stats.norm.ppf(4 / 9)  # one seed in ten collapses: of the others 5 / 9 are above 0


def late(rng, n):
    """One seed in ten stops 500 iterations later; values on a grid of 50."""
    values = np.where(rng.random(n) < 0.1, -500.0, rng.normal(MIDDLE * 60, 60, n))
    return np.floor(values / 50) * 50 + 1e-3 * (values > 0)


NULLS = {
    "normal": lambda rng, n: rng.normal(0, 1, n),
    "skewed": lambda rng, n: rng.exponential(1, n) - math.log(2),
    "skewed down": lambda rng, n: math.log(2) - rng.exponential(1, n),
    "two points": lambda rng, n: np.where(rng.random(n) < 0.5, -0.01, 3.0),
    "collapse": lambda rng, n: np.where(rng.random(n) < 0.1, -20.0, rng.normal(MIDDLE, 1, n)),
    "late": late,
}


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("n", [8, 20])
def test_a_null_is_called_a_winner_in_at_most_5_percent_of_2000_experiments(null, n):
    trials, surely = 2000, Criterion("accuracy", np.ones(n), 0)
    above = (NULLS[null](np.random.default_rng(7), (trials, n)) > 1e-9).sum(axis=1)
    signs = [np.where(np.arange(n) < k, 1.0, -1.0) for k in range(n + 1)]
    p = np.array([p_win([surely, Criterion("gain", v, 0), surely]) for v in signs])
    assert np.mean(p[above] < 0.05) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("which", BOUNDS)
def test_the_whole_verdict_keeps_the_level_on_a_skewed_null_of_any_criterion(which):
    rng, trials, n = np.random.default_rng(3), 100, 20
    scale = {"accuracy": 0.004, "ratio": -0.2, "gain": 0.004}[which]
    params, wrong = params_of([1, 2]), 0
    for _ in range(trials):
        drawn = (BOUNDS[which] + scale * NULLS["skewed"](rng, n) for _ in (1, 2))
        rounds = {number: GOOD | {which: values} for number, values in enumerate(drawn, 1)}
        wrong += concluded(experiment(n, rounds), params).won
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_power_is_that_of_simulated_sign_tests():
    rng = np.random.default_rng(1)
    wins = [p_win([Criterion("gain", rng.random(20) - 0.2, 0)]) < 0.05 for _ in range(4000)]
    assert power(0.8, 20, 0.05) == pytest.approx(np.mean(wins), abs=0.03)


# Intervals


def test_an_interval_is_that_of_order_statistics_or_the_grid_and_absent_from_five_seeds():
    found = median(np.arange(12.0), 0.95, step=0.1)
    assert (found.value, found.low, found.high) == (5.5, 2, 9)
    found = median(np.full(8, 3.0), 0.95, step=0.5)
    assert (found.low, found.high) == (2.5, 3.5)
    lows = [median(np.arange(float(n)), 0.95, step=0.5).low for n in (5, 6)]
    assert lows == [None, 0]


def test_intervals_are_simultaneous_over_the_rounds_listed():
    values = np.linspace(-0.01, 0.02, 20)
    rounds = {number: GOOD | {"accuracy": values} for number in (1, 2)}
    one, two = (
        concluded(experiment(20, rounds), params_of(r)).rounds[0].compared["dense"]
        for r in ([1], [1, 2])
    )
    for found, level in ((one, 0.95), (two, 0.975)):
        expected = median(values, level, 0.001)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert two.low < one.low


def test_the_share_of_seeds_that_miss_is_bounded_after_clopper_and_pearson():
    assert at_most(0, 8, 0.95) == pytest.approx(1 - 0.05 ** (1 / 8))
    assert at_most(2, 20, 0.95) == pytest.approx(stats.beta.ppf(0.95, 3, 18))
    # and p-values are corrected after Holm
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# Criteria


@pytest.mark.parametrize(
    ("which", "better", "name"),
    [
        ("accuracy", 0.001, "accuracy"),
        ("ratio", -0.01, "iterations"),
        ("gain", 0.001, "gain over random_reinit"),
    ],
)
def test_each_criterion_is_held_against_its_bound_and_an_interval_beyond_it_is_said(
    which, better, name
):
    bound = BOUNDS[which]
    for change, outcome in ((better, "wins"), (0, "open"), (-better, "loses")):
        assert judged({which: bound + change}, 10).outcome == outcome
    values = np.r_[bound, np.full(8, GOOD[which])]  # p = 0.02; of nine seeds
    found = concluded(experiment(9, {1: GOOD | {which: values}, 2: GOOD}), params_of([1, 2]))
    assert found.rounds[0].outcome == "wins"
    assert found.rounds[0].beyond == [name]


def test_a_censored_ticket_is_too_late_and_a_censored_dense_network_refutes_nothing():
    found = judged({"flags": {"censored": np.arange(8) < 3}})
    assert [c.misses for c in found.criteria] == [0, 3, 0]
    assert found.outcome == "open"
    for flags, outcome in ((None, "loses"), ({"censored": True}, "open")):
        assert judged({"ratio": 2.0}, dense_flags=flags).outcome == outcome


def test_a_diverged_ticket_never_stops_early():
    diverged = np.arange(8) < 5
    ratio = np.where(diverged, 0.25, 1.0)  # it ended sooner than others stop
    worse = {"accuracy": np.where(diverged, -0.8, 0), "gain": 0.02, "ratio": ratio}
    runs = experiment(8, {1: worse | {"flags": {"diverged": diverged}}})
    found = concluded(runs, params_of([1]))
    assert found.rounds[0].early_stop_ratio.value == math.inf
    assert "early_stop_ratio" not in summary.metrics(found)
    written = summary.as_json(found, 0.95)["rounds"][0]["early_stop_ratio"]
    assert written == [None, 1.0, None]  # the interval ends below in those that have not diverged


def test_tickets_that_begin_after_the_dense_network_stops_cannot_fail_by_being_late():
    params = params_of([1], {"prune.rewind_iteration": 53, "train.iterations": 80})
    found = concluded(experiment(rounds={1: GOOD | {"ratio": 53 / 40}}), params)
    assert (found.verdict, found.rounds[0].outcome) == ("inconclusive", "open")
    assert found.reason.startswith("each subnetwork begins at iteration 53, and the dense network")
    params = params_of([1], {"prune.rewind_iteration": 51, "train.iterations": 80})
    assert concluded(experiment(rounds={1: GOOD | {"ratio": 51 / 40}}), params).won


def test_a_ratio_to_the_dense_network_is_known_where_the_ticket_stopped_and_never_negative():
    on = {"flags": {"censored": np.arange(8) < 5}}
    both = judged(on, dense_flags={"censored": np.arange(8) < 5})  # length over length
    assert both.early_stop_ratio.value == math.inf
    unlearned = np.r_[0.1, np.full(8, 0.9)]
    stops = {"early_stop_iteration": np.r_[0, np.full(8, 40)]}
    found = judged({"ratio": 0.1}, 9, dense=unlearned, dense_flags=stops).early_stop_ratio
    assert found == (0.1, 0.0, 0.35)  # an evaluation each way: 10 of 40 iterations


def test_with_a_margin_below_one_evaluation_no_round_wins_and_what_would_do_is_said():
    for every, could in ((20, "12, or a margin of 0.5"), (15, "12, or a margin of 0.38")):
        how = {"train.evaluate_every": every, "train.iterations": 80}
        found = concluded(experiment(), params_of(changes=how))
        assert found.verdict == "inconclusive"
        assert found.reason.startswith("a report.iteration_margin of 0.3 cannot be measured")
        assert found.reason.endswith(f"train.evaluate_every of at most {could}")
        assert text._outcome(found.rounds[0]) == "open: iterations tell nothing"
        late = concluded(experiment(rounds={1: GOOD | {"ratio": 2.0}}), params_of([1], how))
        assert late.reason == found.reason  # it cannot lose by what cannot be measured
        worse = concluded(experiment(rounds={1: GOOD | {"accuracy": -0.1}}), params_of([1], how))
        assert worse.rounds[0].outcome == "loses"
    assert concluded(experiment(), params_of(changes=how | {"report.iteration_margin": 0.38})).won
    how = {"report.iteration_margin": 0.1, "train.evaluate_every": 40, "train.iterations": 400}
    reason = concluded(experiment(), params_of(changes=how)).reason
    assert reason.endswith("40 iterations apart; what could be: train.evaluate_every of at most 4")
    exact = {"report.iteration_margin": 0.29, "train.evaluate_every": 29, "train.iterations": 200}
    stops = {"early_stop_iteration": np.full(8, 100)}
    found = concluded(experiment(dense_flags=stops), params_of(changes=exact))
    assert "cannot be measured" not in found.reason
    learned = np.arange(8) < 4  # the others stop at once, and say nothing of evaluations
    stops = {"early_stop_iteration": np.where(learned, 40, 0)}
    found = concluded(experiment(dense=np.where(learned, 0.9, 0.1), dense_flags=stops))
    assert "cannot be measured" not in found.reason


def test_of_a_dense_network_that_stops_before_it_trains_no_ticket_is_in_time():
    found = concluded(experiment(dense_flags={"early_stop_iteration": 0}))
    assert found.rounds[0].early_stop_ratio.value == math.inf
    assert [c.met for c in found.rounds[0].criteria] == [8, 0, 8]


def test_an_end_of_an_interval_that_is_0_has_no_sign():
    for k in range(0, 298, 7):  # of 299 test images, seven digits as in histories
        ticket, dense = (round(n / 299, 7) for n in (k, k + 1))
        found = median(np.full(8, ticket - dense), 0.95, 1 / 299)
        assert f"{found.high:+.2f} {found.low:.5f}" == "+0.00 -0.00669"
        assert not found.high < 0


# Several rounds


def test_rounds_are_tested_in_the_order_listed_until_one_fails():
    bad = GOOD | {"gain": np.tile([0.0, 0.02], 5)}
    runs = experiment(10, {1: GOOD, 2: bad, 3: GOOD})
    found = outcomes_of(runs, params_of([3, 2, 1]))
    assert found == [(3, "wins"), (2, "open"), (1, "not tested")]
    assert concluded(runs, params_of([2, 3, 1])).verdict == "inconclusive"
    assert concluded(runs, params_of([1, 2, 3])).shown.round == 1
    # of several winners the sparsest is shown
    assert concluded(experiment(), params_of([1, 2])).shown.round == 2


def test_all_rounds_are_corrected_by_holm_and_losses_too():
    some = GOOD | {"gain": np.r_[np.zeros(1), np.full(7, 0.02)]}  # p = 9 / 256
    runs = experiment(8, dict.fromkeys(range(1, 10), some))
    assert outcomes_of(runs, params_of("all")) == [(r, "open") for r in range(1, 10)]
    assert concluded(runs, params_of([1])).won
    some = GOOD | {"gain": np.r_[np.full(1, 0.02), np.zeros(9)]}  # p = 3 * 11 / 1024 a round
    runs = experiment(10, dict.fromkeys(range(1, 10), some))
    assert outcomes_of(runs, params_of([1])) == [(1, "loses")]
    assert concluded(runs, params_of("all")).rounds[0].p_loss == pytest.approx(9 * 33 / 1024)
    runs = experiment(7, dict.fromkeys(range(1, 10), GOOD))  # all seeds meet it: p = 9 / 128
    heading, seeds = concluded(runs, params_of("all")).rounds[0].needed
    assert heading == "win"
    assert 1 - 3 * (1 - power(8 / 9, seeds, 0.05 / 9)) >= 0.8
    assert 1 - 3 * (1 - power(8 / 9, seeds - 1, 0.05 / 9)) < 0.8


def test_a_round_after_one_that_loses_may_lose_too_and_cannot_win():
    bad = GOOD | {"gain": 0.0}
    found = concluded(experiment(10, {1: bad, 2: bad, 3: GOOD}), params_of([1, 2, 3]))
    assert [j.outcome for j in found.rounds] == ["loses", "loses", "not tested"]
    assert found.verdict == "inconclusive"  # and stays so, however many the seeds
    assert found.reason == "round 1 fails one of the criteria, so that none after it can win"


# What cannot be judged


def test_dense_networks_that_did_not_learn_give_no_verdict_about_tickets():
    found = concluded(experiment(dense=0.1))
    assert found.verdict == "the dense network is not shown to have learned"
    assert text.sentence(found, params_of()) == (
        "**The dense network is not shown to have learned.** At 10.00% it is above a guess in no seed, "
        "by a test at 0.1%."
    )
    perfect = verdict.conclude(experiment(dense=1.0), params_of(), chance=0.9, test_images=60)
    assert perfect.reason.endswith("by a test at 0.1%, and 60 test examples cannot show it")
    assert "ticket_weights" not in summary.metrics(found)


def test_a_seed_whose_dense_network_did_not_learn_counts_as_a_failure():
    dense = np.r_[np.full(8, 0.9), 0.1, 0.1]
    for worse in (GOOD, {"accuracy": -0.1, "ratio": 2.0, "gain": -0.1}):
        bad = {which: np.where(dense < 0.9, worse[which], good) for which, good in GOOD.items()}
        found = concluded(experiment(10, {1: bad}, dense=dense), params_of([1]))
        assert [(c.misses, c.refuted) for c in found.rounds[0].criteria] == [(2, 0)] * 3
    assert found.learned == 8
    assert found.rounds[0].outcome == "open"


def test_a_missing_control_is_named_and_without_tickets_there_is_nothing_to_judge():
    only = params_of([1], {"retrain.variants": ["ticket"]})
    found = concluded(experiment(rounds={1: GOOD | {"controls": []}}), only)
    assert (found.verdict, found.reason) == ("inconclusive", only.missing())
    assert "| open: no control |" in text._compared(found)
    worse = GOOD | {"accuracy": -0.1, "controls": []}
    found = concluded(experiment(10, {1: worse}), only)
    assert found.verdict == "no winning ticket"
    assert text._compared(found).endswith("    loses |")
    runs = experiment()
    found = concluded(runs[runs["variant"] != "ticket"])
    assert (found.verdict, found.rounds) == ("inconclusive", [])


def test_an_inconclusive_verdict_says_how_many_seeds_would_tell_but_not_from_three():
    some = GOOD | {"gain": np.r_[np.zeros(2), np.full(6, 0.02)]}
    found = concluded(experiment(8, {1: some}), params_of([1]))
    heading, seeds = found.rounds[0].needed
    shares = (9 / 10, 9 / 10, 7 / 10)
    assert heading == "win"
    assert 1 - sum(1 - power(s, seeds, 0.05) for s in shares) >= 0.8
    assert f"about {seeds} would let round 1 win" in found.reason
    worse = GOOD | {"gain": np.r_[np.zeros(6), np.full(2, 0.02)]}
    heading, seeds = concluded(experiment(8, {1: worse, 2: worse})).rounds[0].needed
    assert heading == "lose"  # where one criterion of three is refuted, of two rounds
    assert power(7 / 10, seeds, 0.05 / 6) >= 0.8 > power(7 / 10, seeds - 1, 0.05 / 6)
    assert judged({"gain": 0.0}, 3).needed is None


@pytest.mark.parametrize(
    ("rounds", "confidence", "fewest"),
    # of four of four the p-value is 0.06
    [([1], 0.8, 5), ([1, 2], 0.95, 5), ([1], 0.99, 7), ("all", 0.95, 8)],
)
def test_the_fewest_seeds_that_can_win_or_lose_do_and_one_less_does_not(rounds, confidence, fewest):
    params = params_of(rounds, {"report.confidence": confidence})
    good = dict.fromkeys(params.retrain_rounds(), GOOD)
    bad = dict.fromkeys(params.retrain_rounds(), GOOD | {"accuracy": -0.1})
    found = concluded(experiment(fewest - 1, good), params)
    assert found.reason == f"{fewest - 1} seeds cannot tell: {fewest} are the fewest that can"
    assert found.verdict == "inconclusive"
    assert concluded(experiment(fewest, good), params).verdict == "winning ticket"
    seeds = verdict.fewest_to_lose(params)
    assert concluded(experiment(seeds - 1, bad), params).verdict == "inconclusive"
    assert concluded(experiment(seeds, bad), params).verdict == "no winning ticket"


def test_the_ratio_shown_takes_a_ticket_that_was_cut_off_as_late_and_no_dense_network_that_failed():
    for flag in ("censored", "improving"):
        late = {"ratio": np.r_[np.full(3, 0.5), np.full(5, 1.05)]}
        late |= {"flags": {flag: np.arange(8) >= 4}}
        found = judged(late)
        assert found.early_stop_ratio == (math.inf, 0.5, math.inf)
        assert found.criteria[1].misses == 4
    diverged = {"diverged": np.arange(8) < 1}
    shown = judged({}, dense=np.r_[0.1, np.full(7, 0.9)], dense_flags=diverged).early_stop_ratio
    assert shown.value == GOOD["ratio"]
    assert math.isfinite(shown.high)


# Words and files


IN_TIME = ["iterations", "gain over random_reinit"]
CHECKS = ["gain over shuffled_mask", "gain over random_reinit"]


@pytest.mark.parametrize(
    ("changes", "won", "criteria"),
    [
        ({}, "Winning ticket", IN_TIME),
        ({"prune.rewind_iteration": 5}, "Matching subnetwork", IN_TIME),
        ({"prune.strategy": "finetune"}, "The pruned network matches the dense one", []),
        ({"prune.criterion": "snip"}, "Pruning at initialisation passes its sanity checks", CHECKS),
    ],
)
def test_the_words_fit_what_was_tested(changes, won, criteria):
    params = params_of([1], changes)
    controls = ["random_reinit", "shuffled_mask"]
    found = concluded(experiment(rounds={1: GOOD | {"controls": controls}}), params)
    said = text.sentence(found, params)
    assert said.startswith(f"**{won}.** The sparsest has 80.00% of the weights.")
    assert [c.name for c in found.rounds[0].criteria] == ["accuracy", *criteria]
    assert ("iterations, not more than 30% later" in said) == ("iterations" in criteria)
    assert "within 40 iterations" in said


def test_of_tickets_that_were_cut_off_only_what_holds_for_the_claim_is_said():
    flags = {"censored": ["ticket 1 1 of 8"], "diverged": [], "improving": []}
    late = ": it does not meet the criterion of iterations."
    for strategy, end in (("rewind", late), ("finetune", ".")):
        params = params_of(changes={"prune.strategy": strategy})
        claim = verdict.claim_of(params.prune)
        said = text._words().ended(flags, {"ticket", "dense"}, params.train, claim)
        ratio = "dense network's is unknown, and counts as infinite"
        assert str(said).strip().endswith(ratio + end)


def test_metrics_are_ten_flat_numbers_at_most_and_all_else_is_in_results_and_verdict():
    controls = ["random_reinit", "random_mask", "shuffled_mask"]
    runs = experiment(rounds={1: GOOD, 2: GOOD | {"controls": controls}})
    runs.loc[runs["variant"] == "random_mask", "test_accuracy"] -= 0.01
    found = concluded(runs)
    assert summary.metrics(found) == {
        "verdict": "winning ticket",
        "won": 1,
        "seeds": 8,
        "dense_accuracy": 90.0,
        "ticket_weights": 64.0,
        "ticket_accuracy": 90.0,
        "early_stop_ratio": 0.7,
        "vs_dense": 0.0,
        "vs_reinit": 2.0,
        "vs_mask": 3.0,
    }
    row = summary.results(runs, found).set_index(["variant", "round"]).loc[("random_reinit", 2)]
    assert (row["ticket_minus_value"], row["n"]) == (pytest.approx(0.02), 8)
    said = json.loads(json.dumps(summary.as_json(found, 0.95)))
    assert said["round"] == 2
    assert [c["misses_at_most"] for c in said["rounds"][0]["criteria"]] == [0.31234] * 3
    # an evaluation each way: 10 of the 40 iterations at which the dense network stops
    assert said["rounds"][0]["early_stop_ratio"] == [0.7, 0.45, 0.95]


def test_results_and_verdict_count_the_seeds_that_were_cut_off_diverged_or_missed_a_criterion():
    flags = {"censored": np.arange(8) < 3, "diverged": np.arange(8) >= 6}
    flags |= {"improving": np.arange(8) == 4}
    runs = experiment(8, {1: GOOD | {"accuracy": 0.01, "flags": flags}})
    found = concluded(runs, params_of([1]))
    row = summary.results(runs, found).set_index(["variant", "round"]).loc[("ticket", 1)]
    assert (row["censored"], row["improving"], row["diverged"]) == (3, 1, 2)
    assert row["ticket_minus_value"] == pytest.approx(0.01)  # the dense network's
    (said,) = summary.as_json(found, 0.95)["rounds"]
    two_of_eight = pytest.approx(stats.binom.sf(1, 8, 0.5), rel=1e-4)
    assert [c["misses"] for c in said["criteria"]] == [0, 6, 0]
    assert (said["criteria"][1]["p"], said["p_win"], said["p_loss"]) == (*[two_of_eight] * 2, 1)
