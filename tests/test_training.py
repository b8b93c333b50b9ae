"""One run: the compiled engine against references, and what must hold after every step."""

import math

import numpy as np
import pytest
import tensorflow as tf
from clones import network

from benchmarks.reference import beside_reference
from lottery.datasets.dataset import Dataset
from lottery.datasets.packaged import digits
from lottery.datasets.split import Split
from lottery.masks import Mask
from lottery.params import EarlyStopping, LearningRateSteps, Model, Train
from lottery.training import device, models
from lottery.training.schedule import Order, learning_rates
from lottery.training.trainer import InvariantBroken, Trainer

device.configure(1)
IMAGES, LABELS = digits()
FACTS = {"image_shape": [8, 8, 1], "classes": 10, "test": 400}
DATASET = Dataset(IMAGES, LABELS, FACTS)
SPLIT = Split(*(np.arange(*part, dtype=np.int32) for part in ((0, 600), (600, 800), (800, 1200))))
ORDER = Order("test order", 0)
ADAM = {
    "optimizer": "adam",
    "learning_rate": 1.2e-3,
    "batch_size": 30,
    "iterations": 40,
    "evaluate_every": 10,
}


def trainer(model="lenet_300_100", **changes):
    train = Train(**{**ADAM, **changes})
    return Trainer(Model(name=model, initializer="glorot_normal"), train, DATASET)


@pytest.fixture(scope="module")
def lenet():
    return trainer()


def fresh(model="lenet_300_100", seed=0, share=1.0):
    weights, kinds = models.initialise(network(model, (8, 8, 1)), "initialisation", seed)
    generator = np.random.default_rng(seed)
    mask = Mask({name: generator.random(weights[name].shape) < share for name in kinds})
    return mask.apply(weights), mask


def same(one, other):
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


@pytest.mark.parametrize("model", ["lenet_300_100", "conv2"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"weight_decay": 1e-3},
        {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "learning_rate_steps": LearningRateSteps(iterations=[8, 15], factor=0.5),
        },
    ],
    ids=["adam", "adam with weight decay", "sgd with momentum and steps"],
)
def test_each_of_twenty_iterations_agrees_with_a_float64_reference_within_rounding(model, how):
    engine = trainer(model, iterations=20, evaluate_every=1, **how)
    weights, mask = fresh(model, share=0.5)
    steps = beside_reference(
        engine, DATASET, SPLIT, weights, mask, Order("test order", 0), iterations=20
    )
    for step in steps:
        assert step.train_loss == pytest.approx(step.reference_loss, rel=1e-6)
        for name, update in step.update.items():
            size = np.linalg.norm(update)
            assert size > 1e-4
            assert np.linalg.norm(step.moved[name] - update) < 1e-4 * size, (name, step.iteration)
    assert step.iteration == 19


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_pruned_weights_and_their_slots_are_zero_after_every_step(optimizer):
    engine = trainer(optimizer=optimizer, weight_decay=1e-3, iterations=12, evaluate_every=1)
    weights, mask = fresh(share=0.3)
    seen = []

    def check(iteration, snapshot):
        state = snapshot()
        for name, keep in mask.layers.items():
            assert not state.weights[name][~keep].any()
            for slot in (s for s in state.slots if s.split("/", 1)[1] == name):
                assert not state.slots[slot][~keep].any()
                assert iteration == 0 or state.slots[slot][keep].any()
        seen.append(iteration)

    engine.run(weights, mask, ORDER, SPLIT, iterations=12, on_evaluation=check)
    assert seen == list(range(13))


def test_a_weight_that_is_not_zero_where_it_is_pruned_is_refused(lenet):
    weights, mask = fresh(share=0.5)
    dense, _ = fresh()
    with pytest.raises(InvariantBroken, match="dense1/kernel"):
        lenet.run(dense, mask, ORDER, SPLIT, iterations=10)
    assert weights.keys() == dense.keys()


def test_a_ticket_starts_from_its_initial_weights_bit_for_bit(lenet):
    weights, mask = fresh(share=0.5)
    state = lenet.run(weights, mask, ORDER, SPLIT, iterations=10, keep=[0])
    assert same(state.kept[0], weights)


def test_a_run_does_not_depend_on_the_runs_before_it(lenet):
    weights, mask = fresh(share=0.4)
    first = lenet.run(weights, mask, ORDER, SPLIT, iterations=40)
    lenet.run(*fresh(seed=1), Order("test order", 1), SPLIT, iterations=40)
    again = lenet.run(weights, mask, ORDER, SPLIT, iterations=40)
    assert same(first.weights, again.weights)
    assert same(first.slots, again.slots)
    assert repr(first.history) == repr(again.history)


def test_the_engine_is_traced_once_whatever_is_run(lenet):
    before = (
        lenet._interval.experimental_get_tracing_count(),
        lenet._evaluate.experimental_get_tracing_count(),
    )
    lenet.run(*fresh(seed=2, share=0.2), Order("another", 5), SPLIT, iterations=25, keep=[3, 17])
    after = (
        lenet._interval.experimental_get_tracing_count(),
        lenet._evaluate.experimental_get_tracing_count(),
    )
    assert before == after == (1, 1)


def test_a_resumed_run_continues_bit_for_bit(lenet):
    weights, mask = fresh(share=0.6)
    states = {}
    whole = lenet.run(
        weights,
        mask,
        ORDER,
        SPLIT,
        iterations=40,
        keep=[5, 25],
        on_evaluation=lambda iteration, snapshot: states.setdefault(iteration, snapshot()),
    )
    assert sorted(states) == [0, 10, 20, 30, 40]
    lenet.run(*fresh(seed=3), Order("between", 0), SPLIT, iterations=10)
    for iteration in (0, 10, 20, 30, 40):
        resumed = lenet.run(
            weights,
            mask,
            ORDER,
            SPLIT,
            iterations=40,
            keep=[5, 25],
            resume=states[iteration],
        )
        assert same(resumed.weights, whole.weights)
        assert same(resumed.slots, whole.slots)
        assert repr(resumed.history) == repr(whole.history)
        assert resumed.kept.keys() == whole.kept.keys() == {5, 25}
        assert all(same(resumed.kept[k], whole.kept[k]) for k in (5, 25))


def test_keeping_weights_within_an_interval_changes_nothing(lenet):
    weights, mask = fresh()
    plain = lenet.run(weights, mask, ORDER, SPLIT, iterations=40)
    kept = lenet.run(weights, mask, ORDER, SPLIT, iterations=40, keep=[7, 13, 40])
    assert same(plain.weights, kept.weights)
    assert same(kept.kept[40], plain.weights)
    assert plain.history["validation_loss"] == kept.history["validation_loss"]
    assert plain.history["train_loss"] == pytest.approx(
        kept.history["train_loss"], rel=1e-6, nan_ok=True
    )


def test_a_rewound_run_continues_data_order_and_learning_rate_at_its_start():
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "learning_rate_steps": None}
    engine = trainer(
        **{**sgd, "learning_rate_steps": LearningRateSteps(iterations=[25], factor=0.1)}
    )
    weights, mask = fresh()
    whole = engine.run(weights, mask, ORDER, SPLIT, iterations=40, keep=[20])
    rewound = engine.run(whole.kept[20], mask, ORDER, SPLIT, start=20, iterations=40)
    assert rewound.history["iteration"] == [20, 30, 40]
    assert same(rewound.weights, whole.weights)  # without momentum there is no other state


def test_an_epoch_is_a_permutation_and_the_order_a_function_of_purpose_seed_and_epoch():
    order = Order("test order", 0)
    rows = order.batches(0, 40, images=605, batch_size=30)
    assert rows.shape == (40, 30)
    for epoch in (0, 1):
        of_epoch = rows[20 * epoch : 20 * (epoch + 1)].ravel()
        assert len(set(of_epoch)) == 600
    assert np.array_equal(order.batches(13, 27, 605, 30), rows[13:27])
    assert not np.array_equal(Order("test order", 1).batches(0, 40, 605, 30), rows)
    assert not np.array_equal(Order("other order", 0).batches(0, 40, 605, 30), rows)


def test_histories_are_the_metrics_of_the_weights(lenet):
    weights, mask = fresh()
    state = lenet.run(weights, mask, ORDER, SPLIT, iterations=40)
    model = models.build(network("lenet_300_100", (8, 8, 1)))
    models.assign(model, state.weights)
    for part in ("validation", "test"):
        images, labels = DATASET.part(getattr(SPLIT, part))
        logits = model(images / 255.0).numpy().astype(np.float64)
        log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -log_probability[np.arange(len(labels)), labels].mean()
        accuracy = (logits.argmax(axis=1) == labels).mean()
        assert state.history[f"{part}_loss"][-1] == pytest.approx(loss, rel=1e-5)
        assert state.history[f"{part}_accuracy"][-1] == pytest.approx(accuracy)
    assert math.isnan(state.history["train_loss"][0])
    assert state.history["train_accuracy"][-1] > 0.8
    assert state.history["iteration"] == [0, 10, 20, 30, 40]


def test_the_last_interval_may_be_shorter(lenet):
    state = lenet.run(*fresh(), ORDER, SPLIT, iterations=33)
    assert state.history["iteration"] == [0, 10, 20, 30, 33]


def test_early_stopping_ends_the_run_after_its_patience():
    engine = trainer(early_stopping=EarlyStopping(patience=2, min_delta=10.0), iterations=400)
    state = engine.run(*fresh(), ORDER, SPLIT, iterations=400)
    assert state.history["iteration"] == [0, 10, 20]  # no improvement of 10 nats is to be had
    rule = EarlyStopping(patience=2, min_delta=0.1)
    assert not rule.ends([1.0, 0.8, 0.75])
    assert rule.ends([1.0, 0.8, 0.75, 0.71])
    assert not rule.ends([1.0, 0.8, 0.75, 0.69])


def test_a_run_that_diverges_ends_there_with_finite_weights():
    engine = trainer(optimizer="sgd", learning_rate=1e30)
    weights, mask = fresh(share=0.5)
    state = engine.run(weights, mask, ORDER, SPLIT, iterations=40, keep=[0, 30])
    assert state.history["iteration"] == [0, 10]
    assert math.isnan(state.history["validation_loss"][-1])
    assert same(state.kept[0], weights)
    assert same(state.kept[30], state.weights)  # an iteration that it did not reach
    for name, value in state.weights.items():
        assert np.isfinite(value).all()
        assert name not in mask.layers or not value[~mask.layers[name]].any()


def test_runs_of_other_rows_share_one_engine(lenet):
    weights, mask = fresh()
    other = Split(SPLIT.test, SPLIT.validation, SPLIT.train)
    first = lenet.run(weights, mask, ORDER, SPLIT, iterations=10)
    moved = lenet.run(weights, mask, ORDER, other, iterations=10)
    rows = DATASET.part(SPLIT.train)
    alone = Trainer(
        Model(name="lenet_300_100", initializer="glorot_normal"),
        Train(**ADAM),
        Dataset(rows.images, rows.labels, FACTS),
    )
    same_rows = Split(np.arange(600, dtype=np.int32), *(np.arange(200, dtype=np.int32),) * 2)
    again = alone.run(weights, mask, ORDER, same_rows, iterations=10)
    assert same(first.weights, again.weights)
    assert not same(first.weights, moved.weights)
    assert moved.history["test_loss"][0] != first.history["test_loss"][0]


def test_learning_rate_steps_multiply_at_their_iterations():
    train = Train(
        **{**ADAM, "learning_rate_steps": LearningRateSteps(iterations=[3, 5], factor=0.1)}
    )
    assert learning_rates(train, 1, 7) == pytest.approx(
        [1.2e-3, 1.2e-3, 1.2e-4, 1.2e-4, 1.2e-5, 1.2e-5]
    )


def test_bfloat16_never_rounds_the_master_weights():
    engine = trainer("conv2", precision="bfloat16", iterations=10)
    weights, mask = fresh("conv2", share=0.5)
    state = engine.run(weights, mask, ORDER, SPLIT, iterations=10, keep=[0])
    assert same(state.kept[0], weights)
    kernel = state.weights["dense1/kernel"][mask.layers["dense1/kernel"]]
    assert (kernel != tf.cast(tf.cast(kernel, tf.bfloat16), tf.float32).numpy()).mean() > 0.9
    float32 = trainer("conv2", iterations=10).run(weights, mask, ORDER, SPLIT, iterations=10)
    assert state.history["validation_loss"][-1] == pytest.approx(
        float32.history["validation_loss"][-1], rel=0.05
    )
    assert state.history["validation_loss"][-1] != float32.history["validation_loss"][-1]


def test_evaluation_in_parts_is_the_same_as_at_once(lenet):
    weights, mask = fresh()
    at_once = lenet.run(weights, mask, ORDER, SPLIT, iterations=10)
    engine = Trainer(
        Model(name="lenet_300_100", initializer="glorot_normal"),
        Train(**ADAM),
        DATASET,
        evaluation_batch=77,
    )
    in_parts = engine.run(weights, mask, ORDER, SPLIT, iterations=10)
    assert in_parts.history["test_loss"] == pytest.approx(at_once.history["test_loss"], rel=1e-6)
    assert in_parts.history["test_accuracy"] == at_once.history["test_accuracy"]


def test_jit_compilation_agrees_within_rounding_and_keeps_pruned_weights_zero(lenet):
    weights, mask = fresh(share=0.5)
    plain = lenet.run(weights, mask, ORDER, SPLIT, iterations=20)
    engine = trainer(jit_compile=True)
    compiled = engine.run(weights, mask, ORDER, SPLIT, iterations=20, keep=[13])
    assert compiled.history["train_loss"][1:] == pytest.approx(
        plain.history["train_loss"][1:], rel=1e-4
    )
    again = engine.run(weights, mask, ORDER, SPLIT, iterations=20, keep=[13])
    assert same(compiled.weights, again.weights)
