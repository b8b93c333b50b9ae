"""One run: the compiled engine against references, and what must hold after every step."""

import math

import numpy as np
import pytest
import tensorflow as tf
from clones import network
from networks import logits_of, mean_loss, same

from benchmarks.reference import beside_reference
from lottery.datasets.dataset import Dataset
from lottery.datasets.packaged import digits
from lottery.datasets.split import Split
from lottery.masks import Mask
from lottery.params import EarlyStopping, LearningRateSteps, Model, Train
from lottery.training import models
from lottery.training.schedule import Order, learning_rates, step_sizes
from lottery.training.trainer import InvariantBroken, Trainer

FACTS = {"image_shape": [8, 8, 1], "classes": 10, "test": 400}
DATASET = Dataset(*digits(), FACTS)
SPLIT = Split(*(np.arange(*part, dtype=np.int32) for part in ((0, 600), (600, 800), (800, 1200))))
ORDER = Order("test order", 0)
ADAM = {"optimizer": "adam", "learning_rate": 1.2e-3, "iterations": 40}
ADAM |= {"batch_size": 30, "evaluate_every": 10}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9}
STEPS = {"learning_rate_steps": LearningRateSteps(iterations=[8, 15], factor=0.5)}


def trainer(model="lenet_300_100", dataset=DATASET, **changes):
    given = Model(name=model, initializer="glorot_normal")
    return Trainer(given, Train(**{**ADAM, **changes}), dataset)


def fresh(model="lenet_300_100", seed=0, share=1.0):
    """A network's initial weights under a random mask that keeps a share of them; and the mask."""
    weights, kinds = models.initialise(network(model, (8, 8, 1)), "initialisation", seed)
    generator = np.random.default_rng(seed)
    mask = Mask({name: generator.random(weights[name].shape) < share for name in kinds})
    return mask.apply(weights), mask


def trained(engine, begin, iterations=40, order=ORDER, split=SPLIT, **options):
    return engine.run(*begin, order, split, iterations=iterations, **options)


def alike(one, other):
    """Whether two states are the same bits."""
    parts = same(one.weights, other.weights) and same(one.slots, other.slots)
    kept = one.kept.keys() == other.kept.keys()
    kept = kept and all(same(one.kept[k], other.kept[k]) for k in one.kept)
    return parts and kept and repr(one.history) == repr(other.history)


@pytest.fixture(scope="module")
def lenet():
    return trainer()


# Against references


@pytest.mark.parametrize("model", ["lenet_300_100", "conv2"])
@pytest.mark.parametrize(
    "how",
    [{}, {"weight_decay": 1e-3}, SGD | STEPS],
    ids=["adam", "adam with weight decay", "sgd with momentum and steps"],
)
def test_each_of_twenty_iterations_agrees_with_a_float64_reference_within_rounding(model, how):
    engine = trainer(model, iterations=20, evaluate_every=1, **how)
    weights, mask = fresh(model, share=0.5)
    split = SPLIT._replace(validation=SPLIT.validation[:20], test=SPLIT.test[:20])
    for step in beside_reference(engine, DATASET, split, weights, mask, ORDER, iterations=20):
        assert step.train_loss == pytest.approx(step.reference_loss, rel=1e-6)
        for name, update in step.update.items():
            size = np.linalg.norm(update)
            assert size > 1e-4
            assert np.linalg.norm(step.moved[name] - update) < 1e-4 * size, (name, step.iteration)
    assert step.iteration == 19


def test_pruned_weights_and_their_slots_are_zero_after_every_step():
    engine = trainer(weight_decay=1e-3, iterations=12, evaluate_every=1)
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


def test_a_pruned_weight_that_is_not_zero_moves_or_has_a_slot_is_never_a_result(lenet):
    unmasked, start = trainer(), fresh(share=0.5)
    with pytest.raises(InvariantBroken, match=r"dense1/kernel: .* not 0 at the start"):
        trained(lenet, (fresh()[0], start[1]))
    unmasked._masks = {}
    with pytest.raises(InvariantBroken, match=r"dense1/kernel: .* not 0 after training"):
        trained(unmasked, start, 10)
    state = trained(lenet, start, 10)
    state.slots["v/dense1/kernel"] += 1
    with pytest.raises(InvariantBroken, match=r"v/dense1/kernel: .* not 0 at the start"):
        trained(lenet, start, resume=state)


def test_histories_are_the_metrics_of_the_weights(lenet):
    state = trained(lenet, fresh())  # evaluated in two parts
    for part in ("validation", "test"):
        images, labels = DATASET.part(getattr(SPLIT, part))
        logits = logits_of(state.weights, images)
        loss, accuracy = mean_loss(logits, labels), (logits.argmax(axis=1) == labels).mean()
        assert state.history[f"{part}_loss"][-1] == pytest.approx(loss, rel=1e-5)
        assert state.history[f"{part}_accuracy"][-1] == pytest.approx(accuracy)
    assert math.isnan(state.history["train_loss"][0])
    images, labels = DATASET.part(SPLIT.train[ORDER.batches(0, 1, 600, 30)[0]])
    logits, first = logits_of(fresh()[0], images), trained(lenet, fresh(), 1).history
    assert first["train_loss"][-1] == pytest.approx(mean_loss(logits, labels), rel=1e-5)
    assert first["train_accuracy"][-1] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert state.history["iteration"] == [0, 10, 20, 30, 40]
    # the last interval may be shorter
    assert trained(lenet, fresh(), 33).history["iteration"] == [0, 10, 20, 30, 33]


def test_bfloat16_never_rounds_the_master_weights():
    engine = trainer("conv2", precision="bfloat16", iterations=10)
    weights, mask = fresh("conv2", share=0.5)
    state = trained(engine, (weights, mask), 10, keep=[0])
    assert same(state.kept[0], weights)
    kernel = state.weights["dense1/kernel"][mask.layers["dense1/kernel"]]
    assert (kernel != tf.cast(tf.cast(kernel, tf.bfloat16), tf.float32).numpy()).mean() > 0.9
    loss = state.history["validation_loss"][-1]
    float32 = trained(trainer("conv2", iterations=10), (weights, mask), 10)
    expected = float32.history["validation_loss"][-1]
    assert loss == pytest.approx(expected, rel=0.05)
    assert loss != expected


def test_jit_compilation_agrees_within_rounding_and_repeats_itself(lenet):
    start, engine = fresh(share=0.5), trainer(jit_compile=True)
    plain = trained(lenet, start, 20)
    compiled, again = (trained(engine, start, 20) for _ in range(2))
    expected = pytest.approx(plain.history["train_loss"][1:], rel=1e-4)
    assert compiled.history["train_loss"][1:] == expected
    assert alike(compiled, again)


# One engine, many runs


def test_a_run_depends_neither_on_the_runs_before_it_nor_on_what_it_keeps(lenet):
    start = fresh(share=0.4)
    first = trained(lenet, start)
    traced = [f.experimental_get_tracing_count() for f in (lenet._interval, lenet._evaluate)]
    trained(lenet, fresh(seed=1, share=0.2), 25, Order("another", 5), keep=[3, 17])
    assert alike(first, trained(lenet, start))
    kept = trained(lenet, start, keep=[0, 7, 40])
    assert same(kept.kept[0], start[0])  # bit for bit
    assert same(kept.kept[40], first.weights)
    assert first.history["validation_loss"] == kept.history["validation_loss"]
    losses = first.history["train_loss"]
    assert losses == pytest.approx(kept.history["train_loss"], rel=1e-6, nan_ok=True)
    again = [f.experimental_get_tracing_count() for f in (lenet._interval, lenet._evaluate)]
    assert traced == again == [1, 1]


def test_a_resumed_run_continues_bit_for_bit(lenet):
    start, states = fresh(share=0.6), {}
    keep = lambda iteration, snapshot: states.setdefault(iteration, snapshot())  # noqa: E731
    whole = trained(lenet, start, keep=[5, 25], on_evaluation=keep)
    assert sorted(states) == [0, 10, 20, 30, 40]
    trained(lenet, fresh(seed=3), 10, Order("between", 0))
    for state in states.values():
        assert alike(trained(lenet, start, keep=[5, 25], resume=state), whole)


def test_a_rewound_run_continues_data_order_and_learning_rate_at_its_start():
    steps = LearningRateSteps(iterations=[25], factor=0.1)
    engine = trainer(optimizer="sgd", learning_rate=0.05, learning_rate_steps=steps)
    weights, mask = fresh()
    whole = trained(engine, (weights, mask), keep=[20])
    rewound = trained(engine, (whole.kept[20], mask), start=20, keep=[20])
    assert same(rewound.kept[20], whole.kept[20])
    assert rewound.history["iteration"] == [20, 30, 40]
    assert same(rewound.weights, whole.weights)  # without momentum there is no other state


def test_runs_of_other_rows_share_one_engine(lenet):
    first = trained(lenet, fresh(), 10)
    moved = trained(lenet, fresh(), 10, split=Split(SPLIT.test, SPLIT.validation, SPLIT.train))
    alone = trainer(dataset=Dataset(*DATASET.part(SPLIT.train), FACTS))
    rows = Split(np.arange(600, dtype=np.int32), *(np.arange(200, dtype=np.int32),) * 2)
    assert same(first.weights, trained(alone, fresh(), 10, split=rows).weights)
    assert not same(first.weights, moved.weights)
    assert moved.history["test_loss"][0] != first.history["test_loss"][0]


# How a run ends


def test_early_stopping_ends_the_run_after_its_patience():
    engine = trainer(early_stopping=EarlyStopping(patience=2, min_delta=10.0), iterations=400)
    state = trained(engine, fresh(), 400)
    assert state.history["iteration"] == [0, 10, 20]  # no improvement of 10 nats is to be had
    rule = EarlyStopping(patience=2, min_delta=0.1)
    losses = ([1.0, 0.8, 0.75], [1.0, 0.8, 0.75, 0.71], [1.0, 0.8, 0.75, 0.69])
    assert [rule.ends(values) for values in losses] == [False, True, False]


def test_a_run_that_diverges_ends_there_with_finite_weights():
    weights, mask = fresh(share=0.5)
    engine = trainer(optimizer="sgd", learning_rate=1e30)
    checkpoints = []
    watch = lambda iteration, _: checkpoints.append(iteration)  # noqa: E731
    state = trained(engine, (weights, mask), keep=[0, 5, 30], on_evaluation=watch)
    assert state.history["iteration"] == [0, 10]
    assert checkpoints == [0]  # nothing goes on from where it diverged
    assert math.isnan(state.history["validation_loss"][-1])
    assert same(state.kept[0], weights)
    assert same(state.kept[30], state.weights)  # an iteration that it did not reach
    for name, value in state.weights.items():
        assert np.isfinite(value).all()
        assert np.isfinite(state.kept[5][name]).all()
        assert name not in mask.layers or not value[~mask.layers[name]].any()


def test_a_run_has_diverged_by_its_last_update_or_by_any_loss_before_it(monkeypatch):
    engine = trainer(optimizer="sgd", learning_rate=1e30, evaluate_every=1)
    state = trained(engine, fresh())
    assert math.isfinite(state.history["train_loss"][1])  # of before the update
    assert state.history["iteration"] == [0, 1]
    monkeypatch.setattr(engine, "train_interval", lambda *_: (math.inf, 0))
    state = trained(engine, fresh())
    assert math.isfinite(state.history["test_loss"][1])
    assert math.isnan(state.history["validation_loss"][1])
    assert state.history["iteration"] == [0, 1]


# Orders and rates


def test_an_epoch_is_a_permutation_and_the_order_a_function_of_purpose_seed_and_epoch():
    rows = ORDER.batches(0, 40, images=605, batch_size=30)
    assert rows.shape == (40, 30)
    first, second = np.split(rows, 2)
    assert len(np.unique(first)) == len(np.unique(second)) == 600
    assert not np.array_equal(first, second)
    assert len(np.unique(ORDER.batches(0, 200, 605, 30))) == 605  # no image is left out for good
    assert np.array_equal(ORDER.batches(13, 27, 605, 30), rows[13:27])
    for other in (Order("test order", 1), Order("other order", 0)):
        assert not np.array_equal(other.batches(0, 40, 605, 30), rows)


def test_the_learning_rate_warms_up_linearly_and_steps_multiply_it_at_their_iterations():
    steps = LearningRateSteps(iterations=[3, 5], factor=0.1)
    train = Train(**ADAM, learning_rate_steps=steps)
    expected = [1.2e-3, 1.2e-3, 1.2e-4, 1.2e-4, 1.2e-5, 1.2e-5]
    assert learning_rates(train, 1, 7) == pytest.approx(expected)
    train = Train(**ADAM | {"learning_rate": 0.05}, warmup_iterations=5)
    expected = [0.01, 0.02, 0.03, 0.04, 0.05, 0.05]
    assert learning_rates(train, 0, 6) == pytest.approx(expected)
    assert learning_rates(train, 3, 6) == pytest.approx(expected[3:])


def test_adam_corrects_its_bias_from_where_it_starts_afresh_a_rewound_run_too():
    train = Train(**ADAM)
    first = 1.2e-3 * np.sqrt(1 - 0.999) / (1 - 0.9)
    assert step_sizes(train, 0, 0, 5)[0] == pytest.approx(first)
    for begun in (1, 500):
        rewound = step_sizes(train, begun, begun, begun + 5)
        assert np.array_equal(rewound, step_sizes(train, 0, 0, 5))
        assert np.array_equal(rewound[2:], step_sizes(train, begun, begun + 2, begun + 5))
