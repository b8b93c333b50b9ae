"""The report in Markdown, number by number and sentence by sentence, of results known by hand."""

import numpy as np
import pandas as pd
import pytest
from test_verdict import GOOD, concluded, experiment, params_of

from lottery.params import VARIANTS
from lottery.report import summary, text, verdict

HALF = dict.fromkeys(["conv", "dense", "output"], 0.5)
PATIENT = {"train.early_stopping": {"patience": 3, "min_delta": 0.05}}
HERE = {"device": "CPU", "threads": 1, "versions": {"tensorflow": "2"}}


def cells(table):
    """The rows of a Markdown table, by column."""
    heads, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    return [dict(zip(heads, row, strict=True)) for row in rows]


def said_of(name, *given):
    return str(getattr(text._words(), name)(*given)).strip()


def report_of(runs, params, pruning=None, environments=None, **more):
    """The whole report of an experiment."""
    facts = {"title": "digits", "source": "a package", "test": 297, "own_test": False}
    facts |= {"sha256": "0" * 64, "class_counts": [180] * 10, "image_shape": [8, 8, 1], **more}
    found, none = concluded(runs, params), pd.DataFrame({"position": []})
    trained = runs[:0] if pruning is None else pruning
    beside = trained, found, none, summary.results(runs, found), {}
    return text.markdown(params, facts, environments or {}, runs, *beside)


def test_a_row_of_the_results_is_what_its_runs_reached_and_where():
    ends = {"final_test_accuracy": [0.7, 0.9], "initial_test_accuracy": [0.1, 0.2]}
    of = {"variant": "ticket", "round": 1, "weights_remaining": 0.5}
    stops = {"test_accuracy": [0.9, 0.8], "early_stop_iteration": [100, 1300]}
    runs = pd.DataFrame(of | ends | stops)
    (row,) = cells(text._results(runs, params_of().prune))
    assert row == {
        "variant": "ticket",
        "round": "1",
        "weights remaining": "50.00%",
        "test accuracy (%)": "85.00 [80.00, 90.00]",
        "at the end (%)": "80.00",
        "untrained (%)": "15.0",
        "early-stop iteration": "700 [100, 1,300]",
    }
    finetuned = params_of(changes={"prune.strategy": "finetune"}).prune
    assert cells(text._results(runs, finetuned))[0]["at its start (%)"] == "15.0"


def test_results_have_the_dense_network_first_and_variants_in_their_order():
    runs = experiment(rounds={1: GOOD | {"controls": sorted({*VARIANTS} - {"ticket"})}})
    every = {"retrain.variants": list(VARIANTS), "train.iterations": 134}
    page = report_of(runs, params_of([1], every))
    table = page.partition("## Results")[2].partition("##")[0]
    rows = [line.split("|")[1].split()[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["variant", "dense", *VARIANTS]


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
        (-0.004, "is lower, but not lower than the dense network's by 0.5 points or more (-0.40"),
        (0.0, "is not lower than the dense network's by 0.5 points or more (+0.00"),
        (0.034, "is not lower than the dense network's by 0.5 points or more (+3.40"),
    ],
)
def test_the_verdict_says_on_which_side_of_the_dense_network_a_ticket_is(difference, said):
    controls = {"random_reinit": "2.00", "shuffled_mask": "2.00"}
    params = params_of([1], {"prune.criterion": "snip", "report.confidence": 0.999})
    of = GOOD | {"accuracy": difference, "controls": list(controls)}
    found = text.sentence(concluded(experiment(11, {1: of}), params), params)
    assert f"its test accuracy {said} points; dense 90.00%)" in found
    for name, points in controls.items():
        assert f"; it is {points} points above its `{name}` control, by more than 0.5" in found
    assert found.endswith(" 11 seeds, at 99.9% confidence.")


@pytest.mark.parametrize(
    ("rounds", "how"),
    [("all", "corrected by Holm's method"), ([2, 1], "tested in the order listed, each at full")],
)
def test_the_rule_is_that_of_the_parameters(rounds, how):
    params = params_of(rounds, {"report.iteration_margin": 0.4, "report.confidence": 0.99})
    said = said_of("rule", params, verdict.claim_of(params.prune), 0.8)
    lower = "not lower than the dense network's by 0.5 points or more"
    for part in (
        how,
        "(p, the largest, below 0.01)",
        f"{lower}; early stop not later by 40%",
        "accuracy more than 0.5 points above `random_reinit`.",
    ):
        assert part in said


RECIPE = "8 seeds; adam at 0.0012, batches of 50, 40 iterations"
SEARCH = "2 rounds of iterative layerwise pruning by magnitude"
KEPT = "tickets keep their initial weights"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, f"{RECIPE}; {SEARCH}; {KEPT}."),
        ({"prune.rewind_iteration": 5}, "tickets keep their weights at iteration 5."),
        ({"prune.strategy": "finetune"}, "their trained weights, trained on at the last learning"),
        (
            {"prune.strategy": "learning_rate_rewind", "prune.rewind_iteration": 5},
            "their trained weights, trained again on the schedule from iteration 5.",
        ),
        (
            {"prune.pattern": [2, 4], "prune.rates": HALF, "prune.rounds": 1},
            "pruning of two of four inputs by magnitude",
        ),
        (
            {"prune.scope": "global", "prune.criterion": "snip", "prune.rates": HALF},
            f"2 rounds of iterative global pruning by snip; {KEPT}.",
        ),
        ({"prune.schedule": "one_shot"}, "one-shot layerwise pruning by magnitude; tickets keep"),
        (
            {"prune.pattern": "unit", "prune.rates": HALF | {"output": 0.0}},
            "iterative layerwise pruning of whole units by magnitude;",
        ),
        ({"model.width": 0.5, "model.dropout": 0.2}, "0.5 times the width, dropout 0.2; 2 rounds"),
        ({"train.weight_decay": 0.001}, f"{RECIPE}, weight decay 0.001; {SEARCH}"),
        (
            {"train.optimizer": "sgd", "train.momentum": 0.9, "train.batch_size": 60},
            f"sgd at 0.0012, batches of 60, 40 iterations, momentum 0.9; {SEARCH}",
        ),
        ({"train.warmup_iterations": 10}, f"{RECIPE}, warm-up over 10 iterations; {SEARCH}"),
        ({"train.precision": "bfloat16"}, f"{RECIPE}, computed in bfloat16; {SEARCH}"),
        ({"train.early_stopping": {"patience": 3}}, "3 evaluations without a better val"),
        (PATIENT, ", ended after 3 evaluations without a validation loss lower by more than 0.05;"),
        ({"train.augmentation": {"flip": True, "crop": 0}}, f"{RECIPE}, images flipped; {SEARCH}"),
        ({"train.augmentation": {"flip": False, "crop": 4}}, f"{RECIPE}, images padded by 4 pix"),
    ],
)
def test_what_differs_from_the_plain_recipe_is_said(changes, said):
    assert said in said_of("setting", params_of("all", {"prune.rounds": 2} | changes), 8, True)


def test_of_masks_from_elsewhere_it_is_said_whether_one_is_for_all_and_what_was_searched():
    path, rest = "tickets/x", "; tickets keep their initial weights."
    given = params_of("all", {"retrain.masks": path})
    assert f"taken over from {path}{rest}" in said_of("setting", given, 8, False)
    lacks = f"taken over from {path}, rounds that it lacks found by iterative layerwise pruning by"
    assert lacks in said_of("setting", given, 8, True)
    assert "9 rounds" not in said_of("setting", given, 8, True)
    one = params_of("all", {"retrain.masks": f"{path}.npz", "data.split": "per_seed"})
    assert f"{path}.npz, the same for all seeds{rest}" in said_of("setting", one, 8, False)
    of_test = "there is one, and test images of some seeds may have had a part in it"
    assert f"Nor over masks: {of_test}" in said_of("generalises", one, False, "images")
    assert said_of("generalises", one, True, "images").endswith("Nor over masks: there is one.")
    assert "masks" not in said_of("generalises", given, True, "images")


def test_ones_own_criterion_goes_by_its_name():
    named = params_of("all", {"prune.criterion": "mine.my_parts:abs_grad"})
    assert "pruning by mine.my_parts:abs_grad;" in said_of("setting", named, 8, True)


def test_what_spoils_a_comparison_stands_in_the_report():
    dense = np.r_[0.1, np.full(8, 0.9)]
    gains = np.r_[0.005, np.full(8, 0.02)]
    runs = experiment(9, {1: GOOD | {"gain": gains}, 2: GOOD}, dense=dense)
    pruning = runs[runs["variant"] == "ticket"].assign(variant="pruning")
    pruning["diverged"] = (pruning["round"] == 2) & (pruning["seed"] < 3)
    pruning["improving"] = pruning["round"] == 1
    runs["improving"] = (runs["variant"] == "random_reinit") & (runs["seed"] == 0)
    page = report_of(runs, params_of(changes=PATIENT), pruning, repeated=7, test_in_training=3)
    lower = "beneath the last that counted, so that their early stops are lower bounds"
    bound = "the interval reaches the bound that the test passed"
    for part in (
        "learned in 1 of 9 seeds; they count as failures.",
        "curves end with the first of them: pruning 2 3 of 9.",
        "A control that was cut off or improving is compared within the same budget of",
        f"by no more than 0.05 {lower}: pruning 1 9 of 9, random_reinit 1 1 of 9",
        "**3 of its test images are training or validation images too.**",
        "7 of its images repeat others, value for value",
        f"Round 1: {bound} (gain over random_reinit)",
    ):
        assert part in page, part


def test_the_report_holds_the_verdict_the_numbers_and_what_they_generalise_over():
    runs = experiment(dense_flags={"censored": np.arange(8) < 2})
    page = report_of(runs, params_of(), environments={"dense": [HERE], "retraining": [HERE]})
    assert page.startswith("# Lottery tickets: lenet_300_100 on digits\n\n**Winning ticket.**")
    for part in (
        "Runs cut off by their length, their lowest validation loss at the last evaluation: dense 2 of 8.",
        "The early stop of a dense network that was cut off is a lower bound.",
        "Intervals generalise over seeds, orders and splits of these images; not over other images",
        "0 of 8 (at most 32%)",
        "simultaneous over 2 rounds",
        "1,253 train, 250 validation, 297 test images",
        "\n- CPU, 1 thread(s) a run; tensorflow 2\n",
    ):
        assert part in page, part
    several = {"dense": [HERE], "pruning": [HERE], "retraining": [HERE | {"threads": 2}]}
    page = report_of(runs, params_of(), environments=several)
    assert "\n- CPU, 1 thread(s) a run; tensorflow 2: dense, pruning\n- CPU, 2" in page
