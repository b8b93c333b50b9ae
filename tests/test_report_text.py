"""The report in Markdown, number by number and sentence by sentence, of results known by hand."""

import numpy as np
import pandas as pd
import pytest
from test_verdict import GOOD, concluded, experiment, params_of

from lottery.report import summary, text, verdict

HALF = dict.fromkeys(["conv", "dense", "output"], 0.5)
PATIENT = {"train.early_stopping": {"patience": 3, "min_delta": 0.05}}
TWO_OF_FOUR = {"prune.pattern": [2, 4], "prune.rates": HALF, "prune.rounds": 1}


def cells(table):
    """The rows of a Markdown table, by column."""
    heads, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(heads, row, strict=True)) for row in rows]


def said_of(name, *given):
    return str(getattr(text._words(), name)(*given)).strip()


def test_a_row_of_the_results_is_what_its_runs_reached_and_where():
    ends = {"final_test_accuracy": [0.7, 0.9], "initial_test_accuracy": [0.1, 0.2]}
    of = {"variant": "ticket", "round": 1, "weights_remaining": 0.5}
    stops = {"test_accuracy": [0.9, 0.8], "early_stop_iteration": [100, 1300]}
    (row,) = cells(text._results(pd.DataFrame(of | ends | stops), params_of().prune))
    assert row == {
        "variant": "ticket",
        "round": "1",
        "weights remaining": "50.00%",
        "test accuracy (%)": "85.00 [80.00, 90.00]",
        "at the end (%)": "80.00",
        "untrained (%)": "15.0",
        "early-stop iteration": "700 [100, 1,300]",
    }


def test_costs_are_in_millions_and_in_trillions_of_operations():
    costs = {"inference_flops": [2e6, 1e6, 1e6], "training_flops": [3e12, 1.5e12, 1.5e12]}
    of = {"variant": ["dense", "ticket", "random_reinit"], "weights_remaining": [1.0, 0.5, 0.5]}
    table = pd.DataFrame({**of, "round": [0, 1, 1], **costs, "finding_flops": [0, 3e12, 3e12]})
    dense, ticket = cells(text._costs(table))
    assert list(dense.values()) == ["dense", "0", "100.00%", "2", "3", "0", "1"]
    assert list(ticket.values()) == ["ticket", "1", "50.00%", "1", "1.5", "3", "1.5"]


def test_accuracies_are_compared_in_points_and_iterations_as_a_ratio():
    found = concluded(experiment(rounds={1: GOOD | {"accuracy": 0.01}}), params_of([1]))
    (row,) = cells(text._compared(found))
    assert row == {
        "round": "1",
        "weights remaining": "80.00%",
        "− dense": "+1.00 [+0.90, +1.10]",  # an image each way
        "− random_reinit": "+2.00 [+1.90, +2.10]",
        "early stop / dense": "0.70 [0.45, 0.95]",
        "ticket": "wins",
    }
    (row,) = cells(text._criteria(found.rounds, 0.95))
    assert row["p"] == "0.0039"  # 8 of 8 seeds
    worse = GOOD | {"gain": np.r_[np.zeros(6), np.full(2, 0.02)]}
    first, _ = cells(text._compared(concluded(experiment(8, {1: worse, 2: worse}))))
    assert first["ticket"].startswith("open: about ")
    assert first["ticket"].endswith(" seeds to lose")


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (
            -0.004,
            "is lower, but not lower than the dense network's by 0.5 points or more (-0.40 points",
        ),
        (0.0, "is not lower than the dense network's by 0.5 points or more (+0.00 points"),
        (0.02, "is not lower than the dense network's by 0.5 points or more (+2.00 points"),
    ],
)
def test_the_verdict_says_on_which_side_of_the_dense_network_a_ticket_is(difference, said):
    controls = {"random_reinit": "2.00", "shuffled_mask": "2.00"}
    params = params_of([1], {"prune.criterion": "snip"})
    runs = experiment(rounds={1: GOOD | {"accuracy": difference, "controls": list(controls)}})
    found = text.sentence(concluded(runs, params), params)
    assert f"its test accuracy {said}; dense 90.00%)" in found
    for name, points in controls.items():
        assert f"; it is {points} points above its `{name}` control, by more than 0.5" in found


@pytest.mark.parametrize(
    ("rounds", "how"),
    [("all", "corrected by Holm's method"), ([2, 1], "tested in the order listed, each at full")],
)
def test_the_rule_is_that_of_the_parameters(rounds, how):
    changes = {"report.iteration_margin": 0.4, "report.confidence": 0.99}
    params = params_of(rounds, changes)
    said = said_of("rule", params, verdict.claim_of(params.prune), 0.8)
    assert how in said
    assert "(p, the largest, below 0.01)" in said
    assert (
        "not lower than the dense network's by 0.5 points or more; early stop not later by 40%"
        in said
    )
    assert "accuracy more than 0.5 points above `random_reinit`." in said


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({}, "2 rounds of iterative layerwise pruning by magnitude; tickets keep their initial w"),
        ({"prune.rewind_iteration": 5}, "tickets keep their weights at iteration 5."),
        ({"prune.strategy": "finetune"}, "their trained weights, trained on at the last learning"),
        (
            {"prune.strategy": "learning_rate_rewind", "prune.rewind_iteration": 5},
            "their trained weights, trained again on the schedule from iteration 5.",
        ),
        (TWO_OF_FOUR, "pruning of two of four inputs by magnitude"),
        ({"train.weight_decay": 0.001}, ", weight decay 0.001; 2 rounds"),
        ({"train.optimizer": "sgd", "train.momentum": 0.9}, "sgd at 0.0012, batches of 50, 40 it"),
        ({"train.optimizer": "sgd", "train.momentum": 0.9}, "iterations, momentum 0.9; 2 rounds"),
        ({"train.warmup_iterations": 10}, ", warm-up over 10 iterations; 2 rounds"),
        ({"train.precision": "bfloat16"}, ", computed in bfloat16; 2 rounds"),
        (
            {"train.early_stopping": {"patience": 3}},
            "ended after 3 evaluations without a better val",
        ),
        (PATIENT, ", ended after 3 evaluations without a validation loss lower by more than 0.05;"),
        ({"train.augmentation": {"flip": True, "crop": 0}}, "iterations, images flipped; 2 rounds"),
        ({"train.augmentation": {"flip": False, "crop": 4}}, "ns, images padded by 4 pixels and c"),
    ],
)
def test_what_differs_from_the_plain_recipe_is_said(changes, phrase):
    given = params_of("all", {"prune.rounds": 2} | changes)
    assert phrase in said_of("setting", given, 8, True)


def test_of_masks_from_elsewhere_it_is_said_whether_one_is_for_all_and_what_was_searched():
    path, rest = "tickets/x", "; tickets keep their initial weights."
    given = params_of("all", {"retrain.masks": path})
    assert f"taken over from {path}{rest}" in said_of("setting", given, 8, False)
    lacks = f"taken over from {path}, rounds that it lacks found by iterative layerwise pruning by"
    assert lacks in said_of("setting", given, 8, True)
    one = params_of("all", {"retrain.masks": f"{path}.npz", "data.split": "per_seed"})
    assert f"{path}.npz, the same for all seeds{rest}" in said_of("setting", one, 8, False)
    of_test = (
        "Nor over masks: there is one, and test images of some seeds may have had a part in it"
    )
    assert of_test in said_of("generalises", one, False, "images")
    assert said_of("generalises", one, True, "images").endswith("Nor over masks: there is one.")
    assert "masks" not in said_of("generalises", given, True, "images")


def test_what_spoils_a_comparison_stands_in_the_report():
    dense = np.r_[0.1, np.full(8, 0.9)]
    gains = np.r_[0.005, np.full(8, 0.02)]
    runs = experiment(9, {1: GOOD | {"gain": gains}, 2: GOOD}, dense=dense)
    found, params = concluded(runs), params_of()
    facts = {"title": "digits", "source": "here", "test": 297, "own_test": True, "repeated": 7}
    facts |= {"sha256": "0" * 64, "class_counts": [180] * 10, "image_shape": [8, 8, 1]}
    facts |= {"test_in_training": 3}
    none, results = pd.DataFrame({"position": []}), summary.results(runs, found)
    pruning = runs[runs["variant"] == "ticket"].assign(variant="pruning")
    pruning["diverged"] = (pruning["round"] == 2) & (pruning["seed"] < 3)
    pruning["improving"] = pruning["round"] == 1
    params = params.model_copy(update={"train": params_of(changes=PATIENT).train})
    page = text.markdown(params, facts, {}, runs, pruning, found, none, results, {})
    assert "learned in 1 of 9 seeds; they count as failures." in page
    assert "curves end with the first of them: pruning 2 3 of 9." in page
    assert (
        "by no more than 0.05 beneath the last that counted, so that their early stops are " in page
    )
    assert "lower bounds: pruning 1 9 of 9." in page
    assert "**3 of its test images are training or validation images too.**" in page
    assert "7 of its images repeat others, value for value" in page
    beyond = [(j.round, j.beyond) for j in found.rounds if j.beyond]
    assert beyond
    for number, names in beyond:
        bound = f"Round {number}: the interval reaches beyond the bound that the test passed ("
        assert f"{bound}{', '.join(names)})" in page
