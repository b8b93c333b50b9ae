"""One part of each kind, to copy: ``mine.example:narrow`` and so on in params.yaml."""

import numpy as np
from tf_keras import layers

from lottery.tickets.ticket import Start


def rings():
    """Data: 2,000 rows of two numbers, on one of two noisy circles. The test part is left out."""
    noise = np.random.default_rng(0)
    angle, ring = noise.uniform(0, 2 * np.pi, 2000), noise.integers(0, 2, 2000)
    radius = 1 + ring + noise.normal(0, 0.2, 2000)
    rows = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return {"x_train": rows.astype(np.float32), "y_train": ring, "class_names": ["in", "out"]}


def narrow(images, classes):
    """An architecture: from images [n, height, width, channels] to logits [n, classes]."""
    x = layers.Flatten(name="flatten")(images)
    x = layers.Dense(20, activation="relu", name="hidden")(x)
    return layers.Dense(classes, name="output")(x)


def sensitivity(layer):
    """A criterion: from a layer to scores of its weights, of which the highest survive.

    This is SNIP's (Lee et al. 2019), of the initial weights whatever training made of them; equal
    scores, as of inputs that are always 0, go by chance.
    """
    score = np.abs(layer.w0 * layer.gradient(initial=True)).astype(np.float64)
    return score + 1e-12 * layer.stream("ties").random(score.shape)


def zeroed(t):
    """A variant: from a ticket to where its training starts; here from weights of one size."""
    weights = {name: np.zeros_like(value) for name, value in t.weights.items()}
    for name in t.mask.layers:
        weights[name] = np.sign(t.weights[name]) * np.abs(t.weights[name]).mean()
    return Start(t.mask.apply(weights), t.mask, t.rewind_iteration, t.train)
