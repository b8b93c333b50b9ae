"""Weights on a path from input to output."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from clones import network
from networks import models

from lottery.masks import Mask
from lottery.training.paths import effective


def reachable(layers):
    """Of dense layers' masks, those on a path: by products of Boolean matrices."""
    alive = [np.ones(layers[0].shape[0], bool)]
    for keep in layers:
        alive.append((alive[-1][:, None] & keep).any(axis=0))
    read, found = np.ones(layers[-1].shape[1], bool), []
    for keep, source in reversed(list(zip(layers, alive, strict=False))):
        of_use = keep & source[:, None] & read[None]
        found.insert(0, of_use)
        read = (keep & read[None]).any(axis=1)
    return found


@pytest.mark.parametrize("share", [0.3, 0.05, 0.01])
def test_a_dense_networks_paths_are_products_of_its_masks(share):
    of = network("lenet_300_100", (8, 8, 1), 5, width=0.2)
    generator, shapes = np.random.default_rng(0), ((64, 60), (60, 20), (20, 5))
    names = ("dense1/kernel", "dense2/kernel", "output/kernel")
    layers = [generator.random(shape) < share for shape in shapes]
    found = effective(Mask(dict(zip(names, layers, strict=True))), of)
    for name, expected in zip(names, reachable(layers), strict=True):
        assert np.array_equal(found.layers[name], expected)


def test_without_weights_that_are_on_no_path_the_outputs_stay():
    of = network("networks:residual", (8, 8, 3), 4)
    weights, kinds = models.initialise(of, "initialisation", 0)
    generator = np.random.default_rng(1)
    mask = Mask({name: generator.random(weights[name].shape) < 0.2 for name in kinds})
    on_path = effective(mask, of)
    assert on_path.within(mask)
    assert 0.5 < sum(on_path.counts.values()) / sum(mask.counts.values()) < 0.99
    model, images = models.build(of), generator.random((5, 8, 8, 3), np.float32)
    outputs = []
    for kept in (mask, on_path):
        models.assign(model, kept.apply({n: 3 * w for n, w in weights.items()}))
        outputs.append(model(images, training=False).numpy())
    assert np.ptp(outputs[0], axis=0).max() > 1e-4
    assert np.allclose(*outputs, atol=1e-6)


def test_an_empty_layer_leaves_no_path_where_nothing_goes_around_it():
    of = network("conv2", (8, 8, 3), 4, width=0.1)
    weights, kinds = models.initialise(of, "initialisation", 0)
    full = Mask.full({name: weights[name].shape for name in kinds})
    assert effective(full, of).counts == full.counts
    empty = full.layers | {"conv2/kernel": np.zeros(weights["conv2/kernel"].shape, bool)}
    assert not any(effective(Mask(empty), of).counts.values())


def pooled(images, classes):
    """Of each two units the larger one."""
    hidden = tf_keras.layers.Dense(8, "relu", name="dense1")(tf_keras.layers.Flatten()(images))
    pairs = tf_keras.layers.MaxPooling1D(2)(tf_keras.layers.Reshape((4, 2))(hidden))
    flat = tf_keras.layers.Flatten()(pairs)
    return tf_keras.layers.Dense(classes, name="output")(flat)


def test_each_unit_that_a_maximum_is_taken_of_is_on_a_path():
    of = network("test_paths:pooled", (8, 8, 1), 4)
    full = Mask.full({"dense1/kernel": (64, 8), "output/kernel": (4, 4)})
    assert effective(full, of).counts == full.counts


def clipped(images, classes):
    """ReLU(6) is no sum of its inputs: on many of them it is constant."""
    hidden = tf_keras.layers.Conv2D(4, 3, name="conv1")(images)
    hidden = tf_keras.layers.Flatten()(tf_keras.layers.ReLU(6)(hidden))
    return tf_keras.layers.Dense(classes, name="output")(hidden)


def subtracted(images, classes):
    """What a path adds here, another takes away."""
    flat = tf_keras.layers.Flatten()(images)
    one, other = (tf_keras.layers.Dense(4, "relu", name=name)(flat) for name in ("one", "other"))
    return tf_keras.layers.Dense(classes, name="output")(tf_keras.layers.Subtract()([one, other]))


def tokens(images, classes):
    """An embedding of numbers: ones are one token, so that no path leads through the others."""
    one_hot = tf_keras.layers.Lambda(lambda x: tf.one_hot(tf.cast(x, tf.int32), 7))
    hidden = tf_keras.layers.Dense(4, name="embedding")(one_hot(tf_keras.layers.Flatten()(images)))
    flat = tf_keras.layers.Flatten()(hidden)
    return tf_keras.layers.Dense(classes, name="output")(flat)


def gated(images, classes):
    """A gate whose own inputs are gone still lets a half through."""
    flat = tf_keras.layers.Flatten()(images)
    hidden = tf_keras.layers.Dense(8, "relu", name="hidden")(flat)
    gate = tf_keras.layers.Dense(8, "sigmoid", name="gate")(flat)
    return tf_keras.layers.Dense(classes, name="output")(hidden * gate)


def largest(images, classes):
    """Of each two units the larger one, by an operation that is no layer."""
    hidden = tf_keras.layers.Dense(8, name="hidden")(tf_keras.layers.Flatten()(images))
    pairs = tf.reduce_max(tf_keras.layers.Reshape((4, 2))(hidden), axis=-1)
    return tf_keras.layers.Dense(classes, name="output")(pairs)


@pytest.mark.parametrize("architecture", ["clipped", "subtracted", "tokens", "gated", "largest"])
def test_where_outputs_do_not_grow_with_inputs_paths_are_not_counted(architecture):
    of = network(f"test_paths:{architecture}", (8, 8, 3), 4)
    model = models.build(of)
    shapes = {name: models.variables(model)[name].shape for name in models.kinds(model)}
    assert effective(Mask.full(shapes), of) is None
