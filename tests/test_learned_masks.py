"""Training that changes the mask: dynamic sparse training by hand, supermasks step by step."""

import numpy as np
import pytest
import tensorflow as tf
from test_training import ADAM, DATASET, ORDER, SPLIT, alike, fresh, trained

from lottery.masks import Mask
from lottery.params import Model, Train, checks
from lottery.training import learned_masks
from lottery.training.engine import changed
from lottery.training.learned_masks import TRAINERS, change, drop_fraction
from lottery.training.schedule import Order

LENET = Model(name="lenet_300_100", initializer="glorot_normal")


def trainer(rule, **changes):
    return TRAINERS[rule](LENET, Train(**{**ADAM, **changes}), DATASET)


# A change by hand

KEEP = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
WEIGHTS = np.array([[0.1, -0.4, 0.3], [-0.2, 0, 0], [0, 0, 0]], np.float32)


def test_the_smallest_weights_go_and_those_of_the_largest_gradient_come():
    gradient = np.array([[0, 0, 0], [0, 5, 1], [9, 7, 2]], np.float32)
    keep, new = change(KEEP, WEIGHTS, gradient, 0.5)  # two of four: 0.1 and -0.2
    assert np.array_equal(keep, [[0, 1, 1], [0, 0, 0], [1, 1, 0]])
    assert np.array_equal(new, [[0, 0, 0], [0, 0, 0], [1, 1, 0]])


def test_a_dropped_weight_may_come_back_and_is_then_not_new():
    gradient = np.array([[8, 99, 99], [0, 0, 1], [0, 0, 0]], np.float32)
    keep, new = change(KEEP, WEIGHTS, gradient, 0.5)
    assert np.array_equal(keep, [[1, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert np.array_equal(new, [[0, 0, 0], [0, 0, 1], [0, 0, 0]])


def test_the_number_that_goes_is_rounded_down():
    for fraction, gone in ((0.24, 0), (0.25, 1), (0.49, 1), (0.0, 0)):
        keep, new = change(KEEP, WEIGHTS, np.arange(9.0).reshape(3, 3), fraction)
        assert np.count_nonzero(KEEP & ~keep) == np.count_nonzero(new) == gone
        assert np.count_nonzero(keep) == 4


def test_a_run_of_rigl_that_diverges_before_a_change_is_an_outcome(often):
    how = {"optimizer": "sgd", "learning_rate": 100.0, "evaluate_every": 20}
    state = trained(trainer("rigl", **how), fresh(share=0.2))
    assert np.isnan(state.history["validation_loss"][-1])
    assert state.iteration == 20


def test_the_share_that_goes_falls_by_a_cosine_until_three_quarters_of_the_run():
    shares = [drop_fraction(i, 1000) for i in (0, 375, 750, 900)]
    assert shares == pytest.approx([0.3, 0.15, 0, 0])


def test_the_shortest_run_that_changes_its_mask_is_the_one_that_params_accept():
    assert int(learned_masks.UPDATE_EVERY / learned_masks.UPDATE_UNTIL) == checks.UNCHANGED


# Whole runs


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(learned_masks, "UPDATE_EVERY", 5)


def mask_in(state):
    return {n.removeprefix("mask/"): v > 0 for n, v in state.slots.items() if n[:5] == "mask/"}


@pytest.mark.parametrize("rule", ["rigl", "set"])
def test_a_run_keeps_its_counts_zeros_and_last_mask_and_resumes_bit_for_bit(rule, often):
    engine, (weights, mask) = trainer(rule), fresh(share=0.2)
    states = []

    def watch(iteration, snapshot):
        state = snapshot()
        states.append(state)
        now = mask_in(state)
        assert Mask(now).counts == mask.counts
        for name, keep in now.items():
            for value in (state.weights[name], *(state.slots[f"{s}/{name}"] for s in "mv")):
                assert not value[~keep].any()

    whole = trained(engine, (weights, mask), on_evaluation=watch)
    at = {int(s.iteration): mask_in(s)["dense1/kernel"] for s in states}
    assert not np.array_equal(at[10], at[0])
    assert not np.array_equal(at[30], at[10])
    assert np.array_equal(at[40], at[30])  # three quarters of 40 iterations
    assert whole.history["test_accuracy"][-1] > 0.5
    for state in states[1:-1]:
        assert alike(trained(engine, (weights, mask), resume=state), whole)


def test_weights_grow_where_the_gradient_of_the_next_batch_as_augmented_is_largest(often):
    short = {"iterations": 10, "evaluate_every": 5, "augmentation": {"flip": True, "crop": 1}}
    engine, (weights, mask) = trainer("rigl", **short), fresh(share=0.2)
    states = {}
    watch = lambda i, state: states.update({i: state()})  # noqa: E731
    trained(engine, (weights, mask), 10, on_evaluation=watch)
    images, labels = DATASET.part(SPLIT.train[ORDER.batches(5, 6, 600, 30)[0]])
    images = changed(images, ORDER.changes(5, 6, 600, engine.train)[0], 1).numpy()
    gradient = np.abs(gradients_of(states[5].weights, images, labels)["dense2/kernel"])
    first, before, after = (mask_in(states[i])["dense2/kernel"] for i in (0, 5, 10))
    assert np.array_equal(first, before)  # the first stays for a while
    grown, left_out = after & ~before, ~after & ~before
    assert grown.sum() > 10
    assert gradient[grown].min() >= 0.999 * gradient[left_out].max()


def grown(rule, order=ORDER, iteration=5):
    """The weights of the largest layer that come at an iteration."""
    engine, (weights, mask) = trainer(rule), fresh(share=0.2)
    engine._assign(engine._masks, {n: m.astype(np.float32) for n, m in mask.layers.items()})
    engine._assign(engine._variables, weights)
    engine._last = 40
    engine._change(order, SPLIT, iteration)
    return (engine._masks["dense1/kernel"].numpy() > 0) & ~mask.layers["dense1/kernel"]


def test_what_grows_in_set_is_drawn_anew_for_each_purpose_seed_and_change():
    one, orders = grown("set"), (Order("other order", 0), Order("test order", 1))
    others = [*(grown("set", order) for order in orders), grown("set", iteration=10), grown("rigl")]
    for other in others:
        by_chance = other.sum() / (0.8 * other.size)
        assert np.mean(other[one]) == pytest.approx(by_chance, abs=0.03)
    assert np.array_equal(grown("set"), one)


def test_the_scores_of_a_supermask_are_drawn_for_each_layer_purpose_and_seed():
    (initial, _), (_, mask) = fresh(), fresh(share=0.3)
    orders = (ORDER, Order("other order", 0), Order("test order", 1))
    starts = [trainer("edge_popup")._beginning(initial, mask, o, 0, ()).slots for o in orders]
    scores = [start[f"score/{name}"].ravel()[:1000] for start in starts for name in mask.layers]
    assert np.abs(np.corrcoef(scores) - np.eye(len(scores))).max() < 0.2
    for name, shape in mask.shapes.items():
        bound = shape[0] ** -0.5  # Kaiming uniform with a = √5
        assert 0.98 * bound < np.abs(starts[0][f"score/{name}"]).max() <= np.float32(bound)


def test_a_supermask_trains_scores_alone_by_the_straight_through_gradient():
    engine = trainer("edge_popup", optimizer="sgd", learning_rate=0.5, iterations=3)
    (initial, _), (_, mask) = fresh(), fresh(share=0.3)
    start = engine._beginning(initial, mask, ORDER, 0, ())
    states = []
    watch = lambda i, state: states.append(state())  # noqa: E731
    final = trained(engine, (initial, mask), 3, on_evaluation=watch)
    scores = {n: start.slots[f"score/{n}"].copy() for n in mask.layers}
    for step in range(3):  # in NumPy's and TensorFlow's plain operations
        images, labels = DATASET.part(SPLIT.train[ORDER.batches(step, step + 1, 600, 30)[0]])
        effective = dict(initial)
        for name, count in mask.counts.items():
            lowest = np.sort(np.abs(scores[name]), axis=None)[-count]  # no ties
            effective[name] = initial[name] * (np.abs(scores[name]) >= lowest)
        gradients = gradients_of(effective, images, labels)
        for name, score in scores.items():
            scores[name] = score - 0.5 * gradients[name] * initial[name] * np.sign(score)
    for name, count in mask.counts.items():
        assert np.allclose(final.slots[f"score/{name}"], scores[name], atol=1e-6)
        assert np.abs(scores[name] - start.slots[f"score/{name}"]).max() > 1e-4
        chosen = final.weights[name] != 0
        assert np.count_nonzero(chosen) == count
        assert np.array_equal(final.weights[name][chosen], initial[name][chosen])
    assert np.array_equal(final.weights["dense1/bias"], initial["dense1/bias"])
    assert alike(trained(engine, (initial, mask), 3, resume=states[0]), final)


def gradients_of(weights, images, labels):
    variables = {n: tf.Variable(w) for n, w in weights.items()}
    with tf.GradientTape() as tape:
        x = tf.reshape(tf.cast(images, tf.float32) / 255.0, [len(images), -1])
        for layer in ("dense1", "dense2", "output"):
            x = x @ variables[f"{layer}/kernel"] + variables[f"{layer}/bias"]
            x = tf.nn.relu(x) if layer != "output" else x
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x))
    return {n: g.numpy() for n, g in tape.gradient(loss, variables).items()}


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6])
def test_the_highest_scores_are_exactly_as_many_of_equals_the_first(count):
    scores = np.array([[0.5, -2.0, 0.5], [-0.5, 0.0, 1e-30]], np.float32)
    chosen = learned_masks._highest(tf.constant(scores), count).numpy()
    order = [1, 0, 2, 3, 5, 4]  # of the flat scores
    expected = np.zeros(6)
    expected[order[:count]] = 1
    assert np.array_equal(chosen.ravel(), expected)
