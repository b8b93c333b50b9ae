"""The training engine beside a reference in float64, with the update rules written out. On the CPU, whatever the engine runs on."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Part, Split
from lottery.masks import Mask, Weights
from lottery.params import Network, Train
from lottery.training import models
from lottery.training.schedule import Order, learning_rates
from lottery.training.trainer import State, Trainer

import tensorflow as tf  # isort: skip  (after lottery.models, which sets TF_USE_LEGACY_KERAS)
import tf_keras  # isort: skip


class Step(NamedTuple):
    """One iteration, as the engine did it and as the reference does it from the engine's own state."""

    iteration: int
    train_loss: float
    reference_loss: float
    moved: dict[str, np.ndarray]  # by variable: what the engine added, float64
    update: dict[str, np.ndarray]  # and what the reference would have


def float64_network(network: Network) -> tf_keras.Sequential:
    """The same architecture as a plain tf_keras network that computes in float64."""
    config = models.build(network).get_config()
    for layer in config["layers"]:
        layer["config"]["dtype"] = "float64"
    with tf.device("CPU:0"):
        model = tf_keras.Sequential.from_config(config)
    assert all(v.dtype == tf.float64 for v in model.variables)
    return model


def float64_step(
    network: tf_keras.Sequential, state: State, mask: Mask, train: Train, batch: Part
) -> tuple[dict[str, np.ndarray], float]:
    """One iteration from a state: the updates, and the batch's loss."""
    variables: dict[str, Any] = models.variables(network)
    with tf.device("CPU:0"):
        for name, variable in variables.items():
            variable.assign(state.weights[name].astype(np.float64))
        with tf.GradientTape() as tape:
            logits = network(tf.constant(batch.images / 255.0))
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, logits)
            )
        gradients = tape.gradient(loss, list(variables.values()))
    step = state.iteration + 1
    rate = learning_rates(train, state.iteration, step)[0]
    updates = {}
    for (name, variable), gradient in zip(variables.items(), gradients, strict=True):
        g = gradient.numpy() + train.weight_decay * variable.numpy()
        g = g * mask.layers.get(name, np.ones(g.shape))
        if (
            train.optimizer == "adam"
        ):  # Kingma & Ba 2015, with epsilon as in section 2's last paragraph
            m = 0.9 * state.slots[f"m/{name}"].astype(np.float64) + 0.1 * g
            v = 0.999 * state.slots[f"v/{name}"].astype(np.float64) + 0.001 * g**2
            size = rate * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            updates[name] = -size * m / (np.sqrt(v) + 1e-7)
        else:
            updates[name] = -rate * (
                train.momentum * state.slots[f"momentum/{name}"].astype(np.float64) + g
            )
    return updates, float(loss)


def beside_reference(
    trainer: Trainer,
    dataset: Dataset,
    split: Split,
    weights: Weights,
    mask: Mask,
    order: Order,
    *,
    iterations: int,
) -> Iterator[Step]:
    """A run's iterations from 0, each compared; the trainer's ``evaluate_every`` is 1."""
    states: list[State] = []
    trainer.run(
        weights,
        mask,
        order,
        split,
        iterations=iterations,
        on_evaluation=lambda _, snapshot: states.append(snapshot()),
    )
    assert len(states) == iterations + 1
    network = float64_network(trainer.network)
    for before, after in itertools.pairwise(states):
        (rows,) = order.batches(
            before.iteration, after.iteration, len(split.train), trainer.train.batch_size
        )
        batch = dataset.part(split.train[rows])
        update, loss = float64_step(network, before, mask, trainer.train, batch)
        moved = {
            name: after.weights[name].astype(np.float64) - before.weights[name] for name in update
        }
        yield Step(before.iteration, after.history["train_loss"][-1], loss, moved, update)
