"""Small networks and data for tests that train: TensorFlow is set up once, as a worker sets it up."""

import numpy as np

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Split
from lottery.masks import Mask
from lottery.training import device, models

device.configure(1)


def same(one, other):
    """Whether two sets of weights are the same bits."""
    return one.keys() == other.keys() and all(one[k].tobytes() == other[k].tobytes() for k in one)


def network_of(weights, name, image_shape, classes, **options):
    """A network with these weights."""
    network = models.build(name, image_shape, classes, **options)
    for variable_name, variable in models.variables(network).items():
        variable.assign(weights[variable_name])
    return network


def logits_of(weights, images, name="lenet_300_100", classes=10):
    """What a network with these weights gives for uint8 images, in float64."""
    network = network_of(weights, name, images.shape[1:], classes)
    return network(images.astype(np.float32) / 255).numpy().astype(np.float64)


def mean_loss(logits, labels):
    """The mean cross-entropy, in nats."""
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels])


def full_mask(network, weights):
    """A mask that keeps every prunable weight."""
    return Mask.full({name: weights[name].shape for name in models.kinds(network)})


def random_data(shape, classes):
    """60 images to train on, 12 to validate and 12 to test; and their split."""
    images = np.random.default_rng(0).integers(0, 256, (84, *shape), np.uint8)
    facts = {"image_shape": shape, "classes": classes, "test": 12, "own_test": True}
    split = Split(*np.split(np.arange(84, dtype=np.int32), [60, 72]))
    return Dataset(images, np.arange(84, dtype=np.int32) % classes, facts), split
