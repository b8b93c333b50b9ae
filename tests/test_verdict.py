"""The verdict: about the typical seed, wrong in at most 5 % of experiments, and said in fitting words."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from clones import TINY
from ruamel.yaml import YAML
from scipy import stats

from lottery.errors import LotteryError
from lottery.params import validate
from lottery.report import statistics, summary, text, verdict
from lottery.report.statistics import Criterion, at_most, holm, median, p_loss, p_win, power

CHANCE, TEST = 0.1, 1000
GOOD = {"accuracy": 0.0, "ratio": 0.7, "gain": 0.02}


def params_of(rounds=(2, 1), **changes):
    """TINY's parameters with these rounds; changes by dotted key."""
    content = YAML(typ="safe").load(TINY)
    content["retrain"]["rounds"] = rounds if rounds == "all" else list(rounds)
    content["prune"]["rounds"] = 9
    content["report"] = {"margin": 0.005, "iteration_margin": 0.3, "confidence": 0.95}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section] = {**content[section], name: value} if name else value
    return validate(content)


def experiment(seeds=8, rounds=None, dense=0.9, **changes):
    """outcomes() of an experiment: each round's paired differences, a number or one a seed."""
    rows = []
    numbers = np.arange(seeds)

    def add(variant, number, accuracy, stop, **flags):
        accuracy, stop = np.broadcast_to(accuracy, seeds), np.broadcast_to(stop, seeds)
        for s in numbers:
            row = {"seed": s, "variant": variant, "round": number, "weights_remaining": 0.8**number}
            row |= {"test_accuracy": accuracy[s], "final_test_accuracy": accuracy[s]}
            row |= {"initial_test_accuracy": 0.1, "validation_accuracy": accuracy[s]}
            row |= {"early_stop_iteration": stop[s], "censored": False, "diverged": False}
            rows.append(row | {k: np.broadcast_to(v, seeds)[s] for k, v in flags.items()})

    add("dense", 0, dense, 40, **changes.get("dense_flags", {}))
    for number, one in (rounds or {1: GOOD, 2: GOOD}).items():
        ticket = dense + np.asarray(one["accuracy"], float)
        add("ticket", number, ticket, 40 * np.asarray(one["ratio"]), **one.get("flags", {}))
        for control in one.get("controls", ["random_reinit"]):
            add(control, number, ticket - one["gain"], 80)
    return pd.DataFrame(rows)


def concluded(runs, params=None):
    return verdict.conclude(runs, params or params_of(), chance=CHANCE, test_images=TEST)


def outcomes_of(runs, params=None):
    return [(j.round, j.outcome) for j in concluded(runs, params).rounds]


# The level of the test: false winners on nulls, whose median lies on the bound of a criterion


def normal(rng, n):
    return rng.normal(0, 1, n)


def skewed(rng, n):
    return rng.exponential(1, n) - math.log(2)


def skewed_down(rng, n):
    return math.log(2) - rng.exponential(1, n)


def two_points(rng, n):
    return np.where(rng.random(n) < 0.5, -0.01, 3.0)


def collapse(rng, n):
    """One seed in ten collapses; of the others as many are above that half of all are."""
    return np.where(rng.random(n) < 0.1, -20.0, rng.normal(-stats.norm.ppf(4 / 9), 1, n))


def late(rng, n):
    """One seed in ten stops 500 iterations later; values on a grid of 50."""
    values = np.where(rng.random(n) < 0.1, -500.0, rng.normal(-stats.norm.ppf(4 / 9) * 60, 60, n))
    return np.floor(values / 50) * 50 + 1e-3 * (values > 0)


NULLS = [normal, skewed, skewed_down, two_points, collapse, late]


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("n", [8, 20])
def test_a_null_is_called_a_winner_in_at_most_5_percent_of_2000_experiments(null, n):
    rng, trials = np.random.default_rng(7), 2000
    surely = Criterion.of("accuracy", np.ones(n), 0)
    wrong = sum(
        p_win([surely, Criterion.of("gain", null(rng, n), 0), surely]) < 0.05 for _ in range(trials)
    )
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("which", ["accuracy", "ratio", "gain"])
def test_the_whole_verdict_keeps_the_level_on_a_skewed_null_of_any_criterion(which):
    rng, trials, n = np.random.default_rng(3), 100, 20
    on_the_bound = {"accuracy": -0.005, "ratio": 1.3, "gain": 0.005}[which]
    scale = {"accuracy": 0.004, "ratio": -0.2, "gain": 0.004}[which]
    params, wrong = params_of([1, 2]), 0
    for _ in range(trials):
        rounds = {
            number: GOOD | {which: on_the_bound + scale * skewed(rng, n)} for number in (1, 2)
        }
        wrong += concluded(experiment(n, rounds), params).won
    assert wrong / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_power_is_that_of_simulated_sign_tests():
    rng = np.random.default_rng(1)
    wins = [Criterion.of("gain", rng.random(20) - 0.2, 0).p_above() < 0.05 for _ in range(4000)]
    assert power(0.8, 20, 0.05) == pytest.approx(np.mean(wins), abs=0.03)


# Intervals


def test_an_interval_is_that_of_order_statistics():
    found = median(np.arange(12.0), 0.95, step=0.1)
    assert (found.value, found.low, found.high) == (5.5, 2, 9)


def test_an_interval_is_never_narrower_than_the_grid_and_absent_from_five_seeds():
    found = median(np.full(8, 3.0), 0.95, step=0.5)
    assert (found.low, found.high) == (2.5, 3.5)
    assert median(np.arange(5.0), 0.95, step=0.5).low is None
    assert median(np.arange(6.0), 0.95, step=0.5).low == 0


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


def test_holm_of_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# Criteria


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "wins"),
        ({"accuracy": -0.004}, "wins"),
        ({"accuracy": -0.005}, "open"),  # on the bound
        ({"accuracy": -0.006}, "loses"),
        ({"ratio": 1.29}, "wins"),
        ({"ratio": 1.3}, "open"),
        ({"ratio": 1.31}, "loses"),
        ({"gain": 0.006}, "wins"),
        ({"gain": 0.005}, "open"),
        ({"gain": 0.004}, "loses"),
    ],
)
def test_each_criterion_is_held_against_its_bound(change, outcome):
    runs = experiment(10, {1: GOOD | change})
    assert outcomes_of(runs, params_of([1])) == [(1, outcome)]


def test_a_win_takes_the_largest_of_three_p_values_and_a_loss_three_times_the_smallest():
    values = [np.r_[np.ones(k), -np.ones(10 - k)] for k in (10, 9, 1)]
    criteria = [Criterion.of("gain", v, 0) for v in values]
    assert p_win(criteria) == pytest.approx(stats.binom.sf(0, 10, 0.5))
    assert p_loss(criteria) == pytest.approx(3 * stats.binom.sf(8, 10, 0.5))


def test_fewer_than_five_seeds_never_win():
    assert concluded(experiment(4), params_of()).verdict == "inconclusive"
    assert concluded(experiment(5), params_of()).verdict == "winning ticket"


def test_a_censored_ticket_does_not_meet_the_criterion_of_iterations():
    flags = {"censored": np.arange(8) < 3}
    (judgement,) = concluded(experiment(8, {1: GOOD | {"flags": flags}}), params_of([1])).rounds
    assert [c.misses for c in judgement.criteria] == [0, 3, 0]
    assert judgement.outcome == "open"


def test_a_censored_dense_network_is_a_lower_bound_that_refutes_nothing():
    late_ticket = {1: GOOD | {"ratio": 2.0}}
    flags = {"censored": True}
    assert outcomes_of(experiment(8, late_ticket), params_of([1])) == [(1, "loses")]
    assert outcomes_of(experiment(8, late_ticket, dense_flags=flags), params_of([1])) == [
        (1, "open")
    ]


def test_a_margin_below_one_evaluation_is_refused_with_what_would_do():
    with pytest.raises(LotteryError, match=r"iteration_margin: got 0.3; accepted: 0.5 or more"):
        concluded(experiment(), params_of(train__evaluate_every=20, train__iterations=80))
    with pytest.raises(LotteryError, match=r"accepted: 0.38 or more"):  # 15 of 40 are 0.375
        concluded(experiment(), params_of(train__evaluate_every=15, train__iterations=80))
    concluded(
        experiment(),
        params_of(
            train__evaluate_every=15, train__iterations=80,
            report={"margin": 0.005, "iteration_margin": 0.38, "confidence": 0.95},
        ),
    )  # fmt: skip


# Several rounds


def test_rounds_are_tested_in_the_order_listed_until_one_fails():
    bad = GOOD | {"gain": np.tile([0.0, 0.02], 5)}
    rounds = {1: GOOD, 2: bad, 3: GOOD}
    runs = experiment(10, rounds)
    assert outcomes_of(runs, params_of([3, 2, 1])) == [
        (3, "wins"),
        (2, "open"),
        (1, "not tested"),
    ]
    assert concluded(runs, params_of([2, 3, 1])).verdict == "inconclusive"
    assert concluded(runs, params_of([1, 2, 3])).shown.round == 1


def test_all_rounds_are_corrected_by_holm():
    some = GOOD | {"gain": np.r_[np.zeros(1), np.full(7, 0.02)]}  # p = 9 / 256
    rounds = dict.fromkeys(range(1, 10), some)
    assert outcomes_of(experiment(8, rounds), params_of("all")) == [
        (r, "open") for r in range(1, 10)
    ]
    assert concluded(experiment(8, rounds), params_of([1])).won


def test_a_loss_is_corrected_over_rounds():
    some = GOOD | {"gain": np.r_[np.full(1, 0.02), np.zeros(9)]}  # p = 3 * 11 / 1024 a round
    rounds = dict.fromkeys(range(1, 10), some)
    runs = experiment(10, rounds)
    assert outcomes_of(runs, params_of([1])) == [(1, "loses")]
    assert concluded(runs, params_of("all")).rounds[0].p_loss == pytest.approx(9 * 33 / 1024)


def test_no_winning_ticket_takes_that_every_round_loses():
    bad = GOOD | {"gain": 0.0}
    assert concluded(experiment(10, {1: bad, 2: bad})).verdict == "no winning ticket"
    assert concluded(experiment(10, {1: bad, 2: GOOD}), params_of([1, 2])).verdict == "inconclusive"


def test_the_ticket_shown_is_the_sparsest_winner():
    assert concluded(experiment(rounds={1: GOOD, 2: GOOD}), params_of([1, 2])).shown.round == 2


# What cannot be judged


def test_dense_networks_that_did_not_learn_give_no_verdict_about_tickets():
    found = concluded(experiment(dense=0.1))
    assert found.verdict == "the dense network did not learn"
    assert text.sentence(found, params_of()) == (
        "**The dense network did not learn.** At 10.00% it is not above a guess in any seed."
    )
    assert "ticket_weights" not in summary.metrics(found)


def test_a_seed_whose_dense_network_did_not_learn_counts_as_a_failure():
    dense = np.r_[np.full(8, 0.9), 0.1, 0.1]
    found = concluded(experiment(10, {1: GOOD}, dense=dense), params_of([1]))
    assert found.learned == 8
    assert [c.misses for c in found.rounds[0].criteria] == [2, 2, 2]
    assert found.rounds[0].outcome == "open"


def test_a_missing_control_is_named():
    found = concluded(experiment(rounds={1: GOOD | {"controls": []}}), params_of([1]))
    assert found.verdict == "inconclusive"
    assert found.reason == "add to retrain.variants: random_reinit"


def test_without_tickets_there_is_nothing_to_judge():
    runs = experiment()
    found = concluded(runs[runs["variant"] != "ticket"])
    assert (found.verdict, found.rounds) == ("inconclusive", ())


def test_an_inconclusive_verdict_says_how_many_seeds_would_tell_but_not_from_three():
    some = GOOD | {"gain": np.r_[np.zeros(2), np.full(6, 0.02)]}
    found = concluded(experiment(8, {1: some}), params_of([1]))
    heading, seeds = found.rounds[0].needed
    shares = (9 / 10, 9 / 10, 7 / 10)
    assert heading == "win"
    assert 1 - sum(1 - power(s, seeds, 0.05) for s in shares) >= 0.8
    assert f"about {seeds} would let round 1 win" in found.reason
    few = concluded(experiment(3, {1: GOOD | {"gain": 0.0}}), params_of([1]))
    assert few.rounds[0].needed is None
    assert few.reason == "3 seeds cannot tell: 5 are the fewest that can"


# Words and files


@pytest.mark.parametrize(
    ("changes", "controls", "won"),
    [
        ({}, ["random_reinit"], "Winning ticket"),
        ({"prune__rewind_iteration": 5}, ["random_reinit"], "Matching subnetwork"),
        ({"prune__strategy": "finetune"}, [], "The pruned network matches the dense one"),
        (
            {"prune__criterion": "snip"},
            ["random_reinit", "shuffled_mask"],
            "Pruning at initialisation passes its sanity checks",
        ),
    ],
)
def test_the_words_fit_what_was_tested(changes, controls, won):
    params = params_of([1], **changes)
    found = concluded(experiment(rounds={1: GOOD | {"controls": controls}}), params)
    said = text.sentence(found, params)
    assert said.startswith(f"**{won}.** The sparsest has 80.00% of the weights.")
    assert ("iterations, not more than" in said) == (found.claim.iterations)
    assert "within 40 iterations" in said


def test_a_ticket_below_the_dense_network_but_within_the_margin_is_never_called_as_good():
    found = concluded(experiment(rounds={1: GOOD | {"accuracy": -0.004}}), params_of([1]))
    said = text.sentence(found, params_of([1]))
    assert "lower, but within 0.5 points of the dense network's (-0.40 points" in said
    assert "as good" not in said


def test_an_interval_beyond_a_bound_that_its_test_passed_is_said():
    values = np.r_[np.full(2, 0.0), np.full(7, 0.02)]  # p = 0.09; of nine seeds
    values[0] = 0.02  # p = 0.02
    found = concluded(experiment(9, {1: GOOD | {"gain": values}, 2: GOOD}), params_of([1, 2]))
    assert found.rounds[0].outcome == "wins"
    assert found.rounds[0].beyond == ["gain over random_reinit"]


def test_metrics_are_at_most_ten_flat_numbers_and_those_of_the_ticket_shown():
    found = concluded(experiment())
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
    }


def test_all_else_is_in_results_and_verdict():
    runs = experiment()
    found = concluded(runs)
    table = summary.results(runs, found).set_index(["variant", "round"])
    assert table.loc[("random_reinit", 2), "ticket_minus_value"] == pytest.approx(0.02)
    assert table.loc[("random_reinit", 2), "n"] == 8
    said = json.loads(json.dumps(summary.as_json(found, 0.95)))
    assert said["round"] == 2
    assert [c["misses_at_most"] for c in said["rounds"][0]["criteria"]] == [0.31234] * 3
    assert statistics.MOST_SEEDS == 1000


def test_the_report_holds_the_verdict_the_numbers_and_what_they_generalise_over():
    params = params_of()
    runs = experiment(dense_flags={"censored": np.arange(8) < 2})
    facts = {
        "title": "digits",
        "source": "a package",
        "test": 297,
        "own_test": False,
        "sha256": "0" * 64,
        "class_counts": [180] * 10,
    }
    here = {"device": "CPU", "threads": 1, "versions": {"tensorflow": "2"}}

    def report(**environments):
        lines = pd.DataFrame({"position": []})
        return text.markdown(params, facts, environments, runs, concluded(runs), lines, {})

    page = report(dense=[here], retraining=[here])
    assert "\n- CPU, 1 thread(s) a run; tensorflow 2\n" in page
    page = report(dense=[here], pruning=[here], retraining=[here | {"threads": 2}])
    assert "\n- CPU, 1 thread(s) a run; tensorflow 2: dense, pruning\n- CPU, 2" in page
    assert page.startswith("# Lottery tickets: lenet_300_100 on digits\n\n**Winning ticket.**")
    for part in (
        "Runs cut off by their length, their lowest validation loss at the last evaluation: dense 2 of 8.",
        "The early stop of a dense network that was cut off is a lower bound.",
        "Intervals generalise over seeds, orders and splits of these images; not over other images",
        "0 of 8 (at most 31%)",
        "simultaneous over 2 rounds",
        "1,253 train, 250 validation, 297 test images",
    ):
        assert part in page, part
