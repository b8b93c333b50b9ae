"""Dead units removed: answers known by hand, and real networks whose outputs must not change."""

import numpy as np
import pytest

from lottery.tools.dead_units import Layer, dead, remove


def arrays(**values):
    return {name.replace("__", "/"): np.array(value, np.float32) for name, value in values.items()}


IMAGES = Layer("images", "input", channels=2)
DENSE = [
    IMAGES,
    Layer("hidden", "weighted", ("images",), activation="relu"),
    Layer("output", "weighted", ("hidden",)),
]


def test_a_unit_without_inputs_is_folded_into_the_next_bias_and_one_without_outputs_is_removed():
    weights = arrays(
        hidden__kernel=[[1, 0, 3, 0], [2, 0, 4, 0]],  # units 1 and 3 have no inputs,
        hidden__bias=[0, 2, 0, -5],  # and give relu(2) and relu(-5)
        output__kernel=[[1, 1], [0.5, -1], [0, 0], [7, 7]],  # unit 2 has no outputs
        output__bias=[1, 1],
    )
    masks = {name: weights[name] != 0 for name in ("hidden/kernel", "output/kernel")}
    assert dead(DENSE, weights) == {"hidden": 2}
    found, kept = remove(DENSE, weights, masks)
    expected = arrays(
        hidden__kernel=[[1], [2]], hidden__bias=[0], output__kernel=[[1, 1]], output__bias=[2, -1]
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == np.float32
    assert {name: keep.tolist() for name, keep in kept.items()} == {
        "hidden/kernel": [[True], [True]],
        "output/kernel": [[True, True]],
    }
    assert weights["hidden/kernel"].shape == (2, 4)  # the arguments stay


def test_removal_goes_on_until_nothing_more_is_dead():
    layers = [
        IMAGES,
        Layer("a", "weighted", ("images",), activation="relu"),
        Layer("b", "weighted", ("a",), activation="relu"),
        Layer("output", "weighted", ("b",)),
    ]
    weights = arrays(
        a__kernel=[
            [1, 0, 1],
            [1, 0, 1],
        ],  # a1 has no inputs and gives 3: b1, which reads it alone, is constant too: 6;
        a__bias=[0, 3, 0],
        b__kernel=[
            [1, 0, 0],
            [0, 2, 0],
            [0, 0, 1],
        ],  # b2 has no outputs, so a2, which it alone reads, has none either
        b__bias=[0, 0, 0],
        output__kernel=[[1], [10], [0]],
        output__bias=[0.5],
    )
    found, _ = remove(layers, weights, {})
    assert {name: value.tolist() for name, value in found.items()} == {
        "a/kernel": [[1], [1]],
        "a/bias": [0],
        "b/kernel": [[1]],
        "b/bias": [0],
        "output/kernel": [[1]],
        "output/bias": [60.5],
    }


def test_one_unit_stays_where_all_are_dead():
    zeros = arrays(
        hidden__kernel=np.zeros((2, 3)),
        hidden__bias=[1, 1, 1],
        output__kernel=np.ones((3, 1)),
        output__bias=[0],
    )
    found, _ = remove(DENSE, zeros, {})
    assert found["hidden/kernel"].shape == (2, 1)
    assert (found["output/kernel"].tolist(), found["output/bias"].tolist()) == ([[1]], [2])


@pytest.mark.parametrize(
    ("pads", "bias", "units", "next_bias"), [(True, 2, 2, 0), (True, -2, 1, 0), (False, 2, 1, 18)]
)
def test_a_constant_filter_is_folded_into_a_convolution_only_where_the_border_sees_it_too(
    pads, bias, units, next_bias
):
    layers = [
        IMAGES,
        Layer("conv1", "weighted", ("images",), activation="relu"),
        Layer("conv2", "weighted", ("conv1",), pads=pads),
    ]
    kernel = np.ones((3, 3, 2, 2))
    kernel[..., 1] = 0
    weights = arrays(
        conv1__kernel=kernel,
        conv1__bias=[0, bias],
        conv2__kernel=np.ones((3, 3, 2, 1)),
        conv2__bias=[0],
    )
    found, _ = remove(layers, weights, {})
    assert found["conv2/kernel"].shape == (3, 3, units, 1)
    assert found["conv2/bias"].tolist() == [next_bias]  # 9 pixels of relu(2)


def test_flatten_repeats_a_filter_at_each_position():
    layers = [
        IMAGES,
        Layer("conv", "weighted", ("images",), activation="relu"),
        Layer("flatten", "each", ("conv",), positions=4),
        Layer("output", "weighted", ("flatten",)),
    ]
    weights = arrays(
        conv__kernel=[[[[1, 0], [1, 0]]]],
        conv__bias=[0, 0.5],
        output__kernel=np.arange(8).reshape(8, 1),  # rows of the dead filter: 1, 3, 5, 7
        output__bias=[0],
    )
    found, _ = remove(layers, weights, {})
    assert found["output/kernel"].ravel().tolist() == [0, 2, 4, 6]
    assert found["output/bias"].tolist() == [8]


def test_units_that_are_added_to_others_go_together_or_stay():
    layers = [
        IMAGES,
        Layer("a", "weighted", ("images",)),
        Layer("b", "weighted", ("a",)),
        Layer("sum", "add", ("a", "b")),
        Layer("output", "weighted", ("sum",)),
    ]
    weights = arrays(
        a__kernel=[[1, 1, 0], [1, 1, 0]],
        a__bias=[0, 0, 1],
        b__kernel=[[1, 0, 0], [0, 0, 0], [0, 0, 0]],  # b1 is constant where a1 varies: it stays
        b__bias=[0, 5, 2],
        output__kernel=[[1], [1], [10]],
        output__bias=[0],
    )
    found, _ = remove(layers, weights, {})
    assert found["a/kernel"].tolist() == [[1, 1], [1, 1]]
    assert found["b/bias"].tolist() == [0, 5]
    assert found["output/bias"].tolist() == [30]  # 10 · (1 + 2)
    assert dead(layers, found) == {"b": 1}


def test_units_added_to_flattened_channels_go_with_them():
    layers = [
        IMAGES,
        Layer("a", "weighted", ("images",), activation="relu"),
        Layer("flatten", "each", ("a",), positions=2),
        Layer("b", "weighted", ("images",), activation="relu"),
        Layer("sum", "add", ("b", "flatten")),
        Layer("output", "weighted", ("sum",)),
    ]
    weights = arrays(
        a__kernel=[[1, 0, 1], [1, 0, 0]],
        a__bias=[0, 0, 0],
        b__kernel=[[1, 0, 0, 1, 0, 1], [1, 0, 1, 1, 0, 1]],  # units 1 and 4 are added to channel 1
        b__bias=[0, 0, 0, 0, 3, 0],
        output__kernel=[[1], [1], [1], [1], [2], [1]],
        output__bias=[0],
    )
    found, _ = remove(layers, weights, {})
    assert {name: value.shape for name, value in found.items() if name.endswith("kernel")} == {
        "a/kernel": (2, 2),
        "b/kernel": (2, 4),
        "output/kernel": (4, 1),
    }
    assert found["output/bias"].tolist() == [6]  # 2 · 3


def test_the_neighbours_of_an_unknown_layer_are_left_alone():
    layers = [
        *DENSE[:2],
        Layer("softmax", "other", ("hidden",), channels=2),
        Layer("output", "weighted", ("softmax",)),
    ]
    weights = arrays(
        hidden__kernel=[[1, 0], [1, 0]],
        hidden__bias=[0, 0],
        output__kernel=[[1], [0]],
        output__bias=[0],
    )
    found, _ = remove(layers, weights, {})
    assert {name: value.shape for name, value in found.items()} == {
        name: v.shape for name, v in weights.items()
    }


def unusual(images, classes):
    """An architecture with what the project's own ones lack: valid convolutions, strides, tanh, normalisation after ReLU."""
    from tf_keras import layers

    x = layers.Conv2D(8, 3, padding="valid", activation="tanh", name="a")(images)
    x = layers.ZeroPadding2D(1, name="border")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="valid", activation="relu", name="b")(x)
    x = layers.BatchNormalization(name="b_norm")(x)
    y = layers.Conv2D(8, 1, activation="relu", name="c")(x)
    x = layers.AveragePooling2D(2, padding="same", name="pool")(layers.Add(name="add")([x, y]))
    x = layers.Flatten(name="flatten")(x)
    x = layers.BatchNormalization(name="flat_norm")(x)
    x = layers.Dense(10, activation="elu", name="unknown")(x)
    x = layers.Dense(12, activation="relu", name="d")(layers.Dropout(0.5, name="drop")(x))
    return layers.Dense(classes, name="output")(x)


def entangled(images, classes):
    """An architecture in which a dense layer is added to flattened channels, and one layer reads two others."""
    from tf_keras import layers

    channels = layers.Conv2D(4, 3, strides=4, padding="same", activation="relu", name="a")(images)
    units = layers.Dense(64, activation="relu", name="b")(layers.Flatten(name="flatten")(images))
    x = layers.Add(name="add")([units, layers.Flatten(name="channels")(channels)])
    x = layers.Dense(30, activation="relu", name="c")(x)
    twice = layers.Dense(12, activation="relu", name="twice")
    x = layers.Add(name="sum")(
        [twice(x), twice(layers.Dense(30, activation="relu", name="d")(units))]
    )
    return layers.Dense(classes, name="output")(layers.Dense(20, activation="relu", name="e")(x))


OWN = ["test_dead_units:unusual", "test_dead_units:entangled"]


@pytest.mark.parametrize("name", ["lenet_300_100", "conv2", "resnet20", "vgg16", *OWN])
def test_outputs_agree_within_rounding_and_units_are_removed(name):
    from lottery.tools import formats
    from lottery.training import models

    generator = np.random.default_rng(3)
    shape = (16, 16, 2)
    model = models.build(name, shape, 5)
    weights = models.initialise(model, "he_normal", "test of dead units", 0)
    for variable, value in weights.items():  # as training would leave them
        if not variable.endswith("/kernel"):
            ones, zeros = (
                generator.uniform(0.5, 1.5, value.shape),
                generator.normal(0, 0.1, value.shape),
            )
            weights[variable] = np.where(value == 1, ones, zeros).astype(np.float32)
    masks = {}
    for kernel in models.kinds(model):
        value = weights[kernel]
        masks[kernel] = generator.random(value.shape) < 0.5
        masks[kernel] &= generator.random(value.shape[-1]) < 0.7  # units without inputs
        if len(masks) > 1:
            masks[kernel] &= (generator.random(value.shape[-2]) < 0.8)[
                :, np.newaxis
            ]  # and without outputs
        weights[kernel] = 1.5 * value * masks[kernel]
    layers = formats.described(model)
    fewer, kept = remove(layers, weights, masks)
    values, remaining = (sum(w.size for w in of.values()) for of in (weights, fewer))
    assert remaining < (1 if name.endswith(":entangled") else 0.98) * values
    assert all(np.array_equal(fewer[kernel] != 0, keep) for kernel, keep in kept.items())
    images = 10 * generator.random((20, *shape), np.float32)
    before = formats.of_keras(formats.sized(model, weights))(images)
    after = formats.of_keras(formats.sized(models.build(name, shape, 5), fewer))(images)
    assert (
        np.ptp(before, axis=0).max() > 1e-3 * np.abs(before).max()
    )  # the outputs tell images apart
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
