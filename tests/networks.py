"""Small networks and data for tests that train: TensorFlow is set up once, as a worker sets it up."""

import numpy as np
from clones import network

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Split
from lottery.training import architectures, device, models

from tf_keras import layers  # isort: skip

device.configure(1)


def residual(images, classes):
    """A block of ResNet-20 that halves the sides, between its first and its last layer."""
    x = architectures._normalised(images, 4, 3, "conv0")
    y = architectures._normalised(x, 8, 3, "conv1", strides=2)
    y = architectures._normalised(y, 8, 3, "conv2", relu=False)
    x = architectures._normalised(x, 8, 1, "shortcut", strides=2, relu=False)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return layers.Dense(classes, name="output")(x)


def same(one, other):
    """Whether two sets of weights are the same bits."""
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


def logits_of(weights, images, of=None, training=False):
    """What a network with these weights, by default LeNet, gives for uint8 images, in float64."""
    model = models.build(of or network("lenet_300_100", images.shape[1:]))
    models.assign(model, weights)
    return model(images.astype(np.float32) / 255, training=training).numpy().astype(np.float64)


def mean_loss(logits, labels):
    """The mean cross-entropy, in nats."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])


def random_data(shape, classes):
    """60 images to train on, 12 to validate and 12 to test; and their split."""
    images = np.random.default_rng(0).integers(0, 256, (84, *shape), np.uint8)
    facts = {"image_shape": shape, "classes": classes, "test": 12, "own_test": True}
    split = Split(*np.split(np.arange(84, dtype=np.int32), [60, 72]))
    return Dataset(images, np.arange(84, dtype=np.int32) % classes, facts), split
