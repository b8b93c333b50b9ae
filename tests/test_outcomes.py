"""One row a run: where it stops early, how it ended, and its accuracy there."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.artifacts import files
from lottery.datasets.dataset import write_dataset
from lottery.params import EarlyStopping
from lottery.report import outcomes, text


def history(losses, accuracies=None, *, seed=0, variant="ticket", number=1):
    """The history of one run, evaluated every 50 iterations."""
    n = len(losses)
    return pd.DataFrame(
        {
            "seed": seed,
            "variant": variant,
            "round": number,
            "weights_remaining": 0.8**number,
            "iteration": range(0, 50 * n, 50),
            "validation_loss": losses,
            "validation_accuracy": [0.5 + 0.01 * i for i in range(n)],
            "test_accuracy": accuracies or [0.6 + 0.01 * i for i in range(n)],
        }
    )


def only(table, **options):
    in_any_order = table.sample(frac=1, random_state=0)
    (run,) = outcomes.outcomes(in_any_order, chance=0.1, **options).to_dict("records")
    return run


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.permutations(range(8)))
def test_a_run_stops_early_at_its_first_lowest_validation_loss(losses, order):
    """The test set does not choose."""
    accuracies = [0.1 * i for i in order][: len(losses)]
    run, first = only(history(losses, accuracies)), losses.index(min(losses))
    assert run["early_stop_iteration"] == 50 * first
    assert run["test_accuracy"] == accuracies[first]
    assert run["validation_accuracy"] == 0.5 + 0.01 * first
    assert run["final_test_accuracy"] == accuracies[-1]
    assert run["initial_test_accuracy"] == accuracies[0]


PATIENT = EarlyStopping(patience=2)
BY_MUCH = EarlyStopping(patience=2, min_delta=0.5)


@pytest.mark.parametrize(
    ("losses", "stopping", "censored", "improving"),
    [
        ([3, 2, 1], None, True, False),  # it would have gone on
        ([3, 1, 2], None, False, False),
        ([3, 1, 2, 2], PATIENT, False, False),  # ended by its patience
        ([3, 2, 1], PATIENT, True, False),  # by its length
        ([3, 2.9, 2.8], BY_MUCH, False, True),  # lowest last, yet by its patience
    ],
)
def test_a_run_is_censored_where_its_length_ended_it_at_its_lowest_loss(
    losses, stopping, censored, improving
):
    run = only(history(losses), stopping=stopping)
    assert (run["censored"], run["improving"]) == (censored, improving)
    longer = history(losses, variant="dense_longer")  # nothing stops it early
    assert only(longer, stopping=stopping)["censored"] == only(history(losses))["censored"]


def test_a_run_that_diverges_is_as_good_as_a_guess():
    run = only(history([2.0, 1.0, math.nan]))
    assert run["diverged"]
    assert not run["censored"]
    measured = ("validation_accuracy", "test_accuracy", "final_test_accuracy")
    assert [run[name] for name in measured] == [0.1] * 3
    assert math.isnan(run["early_stop_iteration"])


def test_a_network_has_learned_where_it_is_better_than_a_guess_beyond_chance():
    dense = pd.Series([0.10, 0.130, 0.131, 0.9])
    # of 1,000 images at a guess of 10 %, 131 right or more come in less than one in 1,000 test sets
    assert outcomes.learned(dense, chance=0.1, test_images=1000).tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_a_guess_is_the_largest_class_of_the_test_images_whatever_the_training_set_has(tmp_path):
    labels = np.repeat([0, 1, 0, 1], [45, 55, 6, 4]).astype(np.int32)
    facts = {"classes": 2, "test": 10, "image_shape": [1]}
    for own_test, expected in ((True, 0.6), (False, 59 / 110)):
        facts |= {"own_test": own_test}
        write_dataset(tmp_path, np.zeros((110, 1), np.uint8), labels, facts)
        assert outcomes.guess(files.read_json(tmp_path / "dataset.json")) == pytest.approx(expected)


def test_a_rounds_density_is_that_of_its_ticket():
    rows = [("ticket", 6, 0.26), ("ticket", 6, 0.28), ("dense_longer", 6, 1.0), ("dense", 0, 1.0)]
    table = pd.DataFrame(rows, columns=["variant", "round", "weights_remaining"])
    assert outcomes.of_tickets(table).to_dict() == pytest.approx({6: 0.27})


def test_tables_by_round_and_curves_leave_out_what_not_all_seeds_reached():
    both = pd.concat([history([3, 2, 1]), history([3, 1], [0.7, 0.8], seed=1)])
    runs = outcomes.outcomes(both, chance=0.1)
    (row,) = outcomes.by_round(runs, "early_stop_iteration").to_dict("records")
    assert (row["mean"], row["min"], row["max"], row["n"]) == (75, 50, 100, 2)
    curve = outcomes.curves(both, "test_accuracy")
    assert curve["iteration"].tolist() == [0, 50]
    assert curve["mean"].tolist() == pytest.approx([0.65, 0.705])


@given(st.sets(st.integers(1, 40), min_size=1), st.integers(2, 6))
def test_rounds_spread_out_are_few_and_hold_the_first_and_the_last(rounds, most):
    chosen = outcomes.spread_out(list(rounds), most)
    assert len(chosen) == min(len(rounds), most)
    assert set(chosen) <= rounds
    assert (chosen[0], chosen[-1]) == (min(rounds), max(rounds))
    assert np.all(np.diff(chosen) > 0)


@pytest.mark.parametrize(
    ("effective", "share", "said"),
    [
        ([30, 50], 0.4, "round 1 100.0%"),
        ([20, 40], 0.3, "round 1 75.0% (**compare it at 30.00% of the weights**"),
        ([math.nan, math.nan], math.nan, ""),
    ],
)
def test_survivors_of_no_use_are_counted_and_told(effective, share, said):
    whole = {"round": 1, "layer": "all", "weights": 100, "surviving": [30, 50]}
    density = pd.DataFrame({"seed": [0, 1], **whole, "effective": effective})
    found = outcomes.anatomy(density).assign(weights_remaining=0.4)
    assert found["effective_weights_remaining"].tolist() == pytest.approx([share], nan_ok=True)
    words = text._paths(found)
    assert words == said if not said else words.startswith(said)
    assert ("compare" in words) == ("compare" in said)


def test_empty_layers_are_those_of_the_worst_seed_without_the_row_of_the_whole_network():
    surviving = [(5, 5, 10), (0, 0, 0), (0, 5, 5)]  # by seed
    rows = [(s, 1, *of) for s in range(3) for of in zip("ab*", surviving[s], strict=True)]
    density = pd.DataFrame(rows, columns=["seed", "round", "layer", "surviving"])
    (found,) = outcomes.anatomy(density.assign(weights=10, effective=0)).to_dict("records")
    assert found["empty_layers"] == 2
