"""Dead units removed: answers known by hand, and networks whose outputs must not change."""

import numpy as np
import pytest
import tf_keras
from clones import network
from networks import models
from tf_keras import layers

from lottery.masks import Mask
from lottery.tickets.pruning import pruned
from lottery.tools.dead_units import remove


def without_dead_units(model, weights):
    """The weights that are left by name, after a check that the outputs are the same."""
    variables = models.variables(model)
    for name, variable in variables.items():
        variable.assign(weights.get(name, np.zeros(variable.shape)))
    masks = {name: v.numpy() != 0 for name, v in variables.items() if name.endswith("/kernel")}
    images = 10 * np.random.default_rng(0).random((20, *model.input_shape[1:]), np.float32)
    before = model(images, training=False).numpy()
    smaller, kept = remove(model, masks)
    after = smaller(images, training=False).numpy()
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * max(np.abs(before).max(), 1))
    left = {name: variable.numpy() for name, variable in models.variables(smaller).items()}
    assert all(np.array_equal(left[name] != 0, keep) for name, keep in kept.items())
    return left


def dense(*units, inputs=2):
    """A network of dense layers a, b, …, with ReLU on all but the last."""
    x = images = layers.Input(inputs, name="images")
    for name, count in zip("abc", units, strict=False):
        activation = "linear" if name == "abc"[len(units) - 1] else "relu"
        x = layers.Dense(count, activation, name=name)(x)
    return tf_keras.Model(images, x)


def listed(left):
    return {name: value.tolist() for name, value in left.items()}


def test_a_unit_without_inputs_is_folded_into_the_next_bias_and_one_without_outputs_is_removed():
    weights = {
        "a/kernel": [[1, 0, 3, 0], [2, 0, 4, 0]],  # units 1 and 3 have no inputs,
        "a/bias": [0, 2, 0, -5],  # and give relu(2) and relu(-5)
        "b/kernel": [[1, 1], [0.5, -1], [0, 0], [7, 7]],  # unit 2 has no outputs
        "b/bias": [1, 1],
    }
    left = {"a/kernel": [[1], [2]], "a/bias": [0], "b/kernel": [[1, 1]], "b/bias": [2, -1]}
    assert listed(without_dead_units(dense(4, 2), weights)) == left


def test_removal_goes_on_until_nothing_more_is_dead():
    weights = {
        "a/kernel": [[1, 0, 1], [1, 0, 1]],  # a1 has no inputs and gives 3:
        "a/bias": [0, 3, 0],
        "b/kernel": [[1, 0, 0], [0, 2, 0], [0, 0, 1]],  # b1, which reads it alone, gives 6;
        "c/kernel": [[1], [10], [0]],  # b2 has no outputs, so a2, which it alone reads, has none
        "c/bias": [0.5],
    }
    left = listed(without_dead_units(dense(3, 3, 1), weights))
    assert (left["a/kernel"], left["b/kernel"], left["c/kernel"]) == ([[1], [1]], [[1]], [[1]])
    assert left["c/bias"] == [60.5]


def test_one_unit_stays_where_all_are_dead_and_gives_what_they_gave():
    ones = {"a/bias": [1, 1, 1], "b/kernel": np.ones((3, 1))}
    left = listed(without_dead_units(dense(3, 1), ones))
    assert (left["b/kernel"], left["b/bias"]) == ([[1]], [2])


def test_a_unit_that_was_the_last_with_outputs_may_lose_them_in_a_later_round():
    weights = {
        "a/kernel": [[1, 0, 0], [1, 0, 0]],  # a0 has no outputs, a2 gives 2 to b0 alone,
        "a/bias": [0, 0, 2],  # which then gives 6: all of a and b is dead
        "b/kernel": [[0, 0], [0, 0], [3, 0]],
        "c/kernel": [[1], [0]],
    }
    left = listed(without_dead_units(dense(3, 2, 1), weights))
    assert np.shape(left["a/kernel"]) == (2, 1)


@pytest.mark.parametrize(
    ("padding", "bias", "filters", "next_bias"),
    [("same", 2, 2, 0), ("same", -2, 1, 0), ("valid", 2, 1, 18)],
)
def test_a_constant_filter_is_folded_into_a_convolution_only_where_the_border_sees_it_too(
    padding, bias, filters, next_bias
):
    images = layers.Input((5, 5, 2), name="images")
    x = layers.Conv2D(2, 3, activation="relu", name="a")(images)
    model = tf_keras.Model(images, layers.Conv2D(1, 3, padding=padding, name="b")(x))
    kernel = np.ones((3, 3, 2, 2))
    kernel[..., 1] = 0
    weights = {"a/kernel": kernel, "a/bias": [0, bias], "b/kernel": np.ones((3, 3, 2, 1))}
    left = without_dead_units(model, weights)
    assert left["b/kernel"].shape == (3, 3, filters, 1)
    assert left["b/bias"].tolist() == [next_bias]  # 9 pixels of relu(2)


def test_units_that_are_added_to_others_go_together_or_stay():
    images = layers.Input(2, name="images")
    a = layers.Dense(3, name="a")(images)
    x = layers.Add(name="sum")([a, layers.Dense(3, name="b")(a)])
    model = tf_keras.Model(images, layers.Dense(1, name="c")(x))
    weights = {
        "a/kernel": [[1, 1, 0], [1, 1, 0]],
        "a/bias": [0, 0, 1],
        "b/kernel": [[1, 0, 0], [0, 0, 0], [0, 0, 0]],  # b1 is constant where a1 varies: it stays
        "b/bias": [0, 5, 2],
        "c/kernel": [[1], [1], [10]],
    }
    left = listed(without_dead_units(model, weights))
    assert (left["a/kernel"], left["b/bias"]) == ([[1, 1], [1, 1]], [0, 5])
    assert left["c/bias"] == [30]  # 10 · (1 + 2)


def test_the_neighbours_of_a_layer_that_mixes_channels_are_left_alone():
    images = layers.Input(2, name="images")
    x = layers.Softmax(name="softmax")(layers.Dense(2, "relu", name="a")(images))
    model = tf_keras.Model(images, layers.Dense(1, name="b")(x))
    weights = {"a/kernel": [[1, 0], [1, 0]], "b/kernel": [[1], [0]]}
    assert without_dead_units(model, weights)["a/kernel"].shape == (2, 2)


def unusual(images, classes):
    """What the project's own architectures lack: strides, tanh, normalisation after ReLU."""
    x = layers.Conv2D(8, 3, padding="valid", activation="tanh", name="a")(images)
    x = layers.ZeroPadding2D(1, name="border")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="valid", activation="relu", name="b")(x)
    x = layers.BatchNormalization(name="b_norm")(x)
    y = layers.Conv2D(8, 1, activation="relu", name="c")(x)
    x = layers.AveragePooling2D(2, padding="same", name="pool")(layers.Add(name="add")([x, y]))
    x = layers.BatchNormalization(name="flat_norm")(layers.Flatten(name="flatten")(x))
    x = layers.Dense(10, activation="softmax", name="mixes")(x)
    x = layers.Dense(12, activation="relu", name="d")(layers.Dropout(0.5, name="drop")(x))
    return layers.Dense(classes, name="output")(x)


def entangled(images, classes):
    """A dense layer is added to flattened channels, and one layer reads two others."""
    channels = layers.Conv2D(4, 3, strides=4, padding="same", activation="relu", name="a")(images)
    units = layers.Dense(64, activation="relu", name="b")(layers.Flatten(name="flatten")(images))
    x = layers.Add(name="add")([units, layers.Flatten(name="channels")(channels)])
    twice = layers.Dense(12, activation="relu", name="twice")
    x = layers.Add(name="sum")([twice(layers.Dense(64, "relu", name="c")(x)), twice(units)])
    return layers.Dense(classes, name="output")(layers.Dense(20, activation="relu", name="e")(x))


def test_a_quarter_of_the_units_leaves_a_network_of_a_quarter_of_the_width():
    where = network("conv4", (16, 16, 2), 5, width=0.25)
    weights, kinds = models.initialise(where, "test of whole units", 0)
    full = Mask.full({name: weights[name].shape for name in kinds})
    keep = {n: v.size // v.shape[-1] * (v.shape[-1] // 4) for n, v in full.layers.items()}
    keep["output/kernel"] = full.sizes["output/kernel"]
    how = {"criterion": "magnitude", "initial": weights, "network": where, "seed": 0}
    mask = pruned(full, weights, keep, pattern="unit", **how)
    left = without_dead_units(models.build(where), mask.apply(weights))
    narrow, _ = models.initialise(network("conv4", (16, 16, 2), 5, width=1 / 16), "narrow", 0)
    assert {n: np.shape(w) for n, w in left.items()} == {n: w.shape for n, w in narrow.items()}


@pytest.mark.parametrize(
    "name", ["networks:residual", "test_dead_units:unusual", "test_dead_units:entangled"]
)
def test_outputs_of_sparse_networks_agree_within_rounding_and_units_are_removed(name):
    random = np.random.default_rng(3)
    where = network(name, (16, 16, 2), 5, initializer="he_normal")
    model = models.build(where)
    weights, _ = models.initialise(where, "test of dead units", 0)
    for variable, value in weights.items():
        if variable.endswith("/kernel"):
            keep = random.random(value.shape) < 0.5
            keep &= random.random(value.shape[-1]) < 0.7  # units without inputs
            if value.shape[-2] > 2:
                keep &= (random.random(value.shape[-2]) < 0.8)[:, np.newaxis]  # without outputs
            weights[variable] = 1.5 * value * keep
        else:  # as training would leave them
            weights[variable] = value + random.uniform(-0.3, 0.3, value.shape)
    left = without_dead_units(model, weights)
    values, remaining = (sum(np.size(w) for w in of.values()) for of in (weights, left))
    assert remaining < (1 if name.endswith(":entangled") else 0.98) * values
