"""The compiled part of training: the loop between two evaluations, and evaluation.

An Engine is traced once for an architecture and serves every run of it: a run only assigns weights
and masks. The loop over the iterations between two evaluations runs inside one ``tf.function``;
the images lie on the device, as uint8 or float32, and are gathered there; uint8 is scaled there. On
a GPU uint8 lies as float16, which has all 256 values: TensorFlow gathers no uint8 there, and copies
all images to the host instead, in every iteration.
"""

from typing import Any

import numpy as np

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Split
from lottery.masks import Weights
from lottery.params import Model, Network, Train
from lottery.training.architectures import Dropout
from lottery.training.models import build, kinds, variables
from lottery.training.schedule import ADAM, Order, step_sizes

import tensorflow as tf  # isort: skip  (after models, which sets TF_USE_LEGACY_KERAS)
from tf_keras.layers import BatchNormalization  # isort: skip


def changed(images: tf.Tensor, changes: tf.Tensor, crop: int) -> tf.Tensor:
    """Images ``[n, height, width, channels]``, each flipped left to right where ``changes[:, 0]``,
    padded by ``crop`` zeros on each side and cut to its size again at the top and left of
    ``changes[:, 1:]`` (He et al. 2016, section 4.2)."""
    _, height, width, _ = images.shape
    flip, top, left = (changes[:, i, tf.newaxis] for i in range(3))
    columns = tf.range(width)
    padded = tf.pad(images, [[0, 0], [crop, crop], [crop, crop], [0, 0]])
    rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    across = left + tf.where(flip > 0, width - 1 - columns, columns)
    return tf.gather(rows, across, axis=2, batch_dims=1)


class Engine:
    """Computes with the networks of one architecture on one dataset.

    Args:
        model, train: which network, and how it is trained.
        dataset: its images lie on the device; a run names the rows that it trains and evaluates on.
        evaluation_batch: images evaluated at once; bounds the memory.
    """

    def __init__(
        self, model: Model, train: Train, dataset: Dataset, evaluation_batch: int = 500
    ) -> None:
        self.train = train
        self._evaluation_batch = evaluation_batch
        self._scaled = dataset.images.dtype == np.uint8
        gpu = tf.config.get_visible_devices("GPU")
        lie_as = tf.float16 if self._scaled and gpu else dataset.images.dtype
        self._images = tf.cast(dataset.images, lie_as)
        self._labels = tf.constant(dataset.labels, tf.int64)
        self.network = network = Network(model, dataset.image_shape, dataset.classes)
        self._model = build(network, train.precision, dropout=model.dropout)
        self._dropout = [layer for layer in self._model.layers if isinstance(layer, Dropout)]
        self._variables = variables(self._model)
        self._trained = {name: v for name, v in self._variables.items() if v.trainable}
        self._slot_names = {"adam": ("m", "v"), "sgd": ("momentum",)}[train.optimizer]
        self._slots = {
            f"{slot}/{name}": tf.Variable(tf.zeros(v.shape), trainable=False)
            for slot in self._slot_names
            for name, v in self._trained.items()
        }
        self._masks = {
            name: tf.Variable(tf.ones(self._variables[name].shape), trainable=False)
            for name in kinds(self._model)
        }
        image = tf.TensorSpec((None, *network.image_shape), self._images.dtype)
        label = tf.TensorSpec((None,), tf.int64)
        rows = tf.TensorSpec((None, train.batch_size), tf.int32)
        changes = tf.TensorSpec((None, train.batch_size, 3), tf.int32)
        self._interval = tf.function(
            self._train_interval,
            input_signature=[image, label, rows, tf.TensorSpec((None,), tf.float32)]
            + ([changes] if train.augmentation else [])
            + ([tf.TensorSpec((None, 2), tf.int32)] if self._dropout else []),
            jit_compile=train.jit_compile or None,
            autograph=False,  # translating Python loops takes longer than tracing: 0.5 s a process
        )
        self._evaluate = tf.function(
            self._evaluate_all,
            input_signature=[image, label, tf.TensorSpec((None,), tf.int32)],
            autograph=False,
        )

    def _logits(self, images: tf.Tensor, *, training: bool) -> tf.Tensor:
        if self._scaled:
            images = tf.cast(images, tf.float32) / 255.0
        return self._model(images, training=training)

    def _train_interval(
        self, images: Any, labels: Any, rows: Any, step_sizes: Any, *noise: Any
    ) -> Any:
        def iteration(i: Any, loss_sum: Any, correct: Any) -> Any:
            """One more: its number, the sums of losses and of correct answers."""
            batch = tf.gather(images, rows[i])
            if self.train.augmentation:
                batch = changed(batch, noise[0][i], self.train.augmentation.crop)
            for layer in self._dropout:
                layer.seed = noise[-1][i]
            truth = tf.gather(labels, rows[i])
            with tf.GradientTape() as tape:
                logits = self._logits(batch, training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, list(self._trained.values()))
            for (name, variable), gradient in zip(self._trained.items(), gradients, strict=True):
                self._update(name, variable, gradient, step_sizes[i])
            hits = tf.math.count_nonzero(tf.argmax(logits, axis=1) == truth)
            return i + 1, loss_sum + loss, correct + hits

        steps = tf.shape(rows)[0]
        start = (tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64))
        _, loss_sum, correct = tf.while_loop(
            lambda i, *_: i < steps, iteration, start, parallel_iterations=1
        )
        return loss_sum, correct

    def _update(self, name: str, variable: Any, gradient: Any, step_size: Any) -> None:
        """One optimiser update, by TensorFlow's fused kernels.

        A pruned weight has gradient 0 and slots 0, so its update is 0 as well: it stays 0 by
        itself.
        """
        if self.train.weight_decay:
            gradient += self.train.weight_decay * variable
        if name in self._masks:
            gradient *= self._masks[name]
        update = {"var": variable.handle, "grad": gradient, "lr": step_size}
        first, *second = (self._slots[f"{slot}/{name}"].handle for slot in self._slot_names)
        if self.train.optimizer == "adam":
            # The bias correction (Kingma & Ba 2015, section 2, last paragraph) is in the step size.
            update |= {"m": first, "v": second[0], "beta1_power": 0.0, "beta2_power": 0.0}
            tf.raw_ops.ResourceApplyAdam(**update, **ADAM)
        else:
            momentum = self.train.momentum
            tf.raw_ops.ResourceApplyMomentum(**update, accum=first, momentum=momentum)

    def _evaluate_all(self, images: Any, labels: Any, rows: Any) -> Any:
        size = self._evaluation_batch

        def part(i: Any, losses: Any, hits: Any) -> Any:
            """The losses and hits of one batch more."""
            some = rows[i * size : (i + 1) * size]
            truth = tf.gather(labels, some)
            logits = self._logits(tf.gather(images, some), training=False)
            losses = losses.write(i, tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits))
            return i + 1, losses, hits.write(i, tf.argmax(logits, axis=1) == truth)

        parts, types = (tf.shape(rows)[0] + size - 1) // size, (tf.float32, tf.bool)
        start = (tf.constant(0), *(tf.TensorArray(t, parts, infer_shape=False) for t in types))
        _, losses, hits = tf.while_loop(lambda i, *_: i < parts, part, start, parallel_iterations=1)
        return losses.concat(), hits.concat()

    def evaluate(self, rows: np.ndarray, weights: Weights | None = None) -> tuple[float, float]:
        """Mean loss and accuracy on these rows, of ``weights`` or of those that the network has."""
        if weights is not None:
            self._assign(self._variables, weights)
        losses, hits = self._evaluate(self._images, self._labels, rows)
        return float(losses.numpy().astype(np.float64).mean()), float(hits.numpy().mean())

    def with_statistics_of(self, rows: np.ndarray, weights: Weights) -> Weights:
        """``weights`` with moving means and variances of batch normalisation estimated on these
        rows.

        They are the means over batches of ``evaluation_batch`` images, each normalised by its own
        statistics as in training; images of a last, smaller batch are left out. Without batch
        normalisation they come back as they are. (Izmailov et al. 2018, section 3.3.)
        """
        norms = [one for one in self._model.layers if isinstance(one, BatchNormalization)]
        if not norms:
            return weights
        self._assign(self._variables, weights)
        for dropout in self._dropout:
            dropout.seed = None  # nothing is dropped
        size = min(self._evaluation_batch, len(rows))
        batches = rows[: len(rows) // size * size].reshape(-1, size)
        momenta, sums = [norm.momentum for norm in norms], dict[str, Any]()
        for norm in norms:
            norm.momentum = 0.0  # the moving statistics become those of the last batch
            sums |= {f"{norm.name}/moving_mean": 0.0, f"{norm.name}/moving_variance": 0.0}
        for batch in batches:
            self._logits(tf.gather(self._images, batch), training=True)
            for name in sums:
                sums[name] += self._variables[name].numpy().astype(np.float64)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return weights | {n: (total / len(batches)).astype(np.float32) for n, total in sums.items()}

    def train_interval(self, order: Order, split: Split, first: int, start: int, stop: int) -> Any:
        """Iterations ``[start, stop)`` of a run begun at ``first``: sum of losses, hits."""
        images, train = len(split.train), self.train
        rows = split.train[order.batches(start, stop, images, train.batch_size)]
        inputs = [self._images, self._labels, rows, step_sizes(train, first, start, stop)]
        if train.augmentation:
            inputs.append(order.changes(start, stop, images, train))
        if self._dropout:
            inputs.append(order.dropout_seeds(start, stop))
        return self._interval(*inputs)

    @staticmethod
    def _assign(group: dict[str, Any], values: Weights) -> None:
        for name, variable in group.items():
            variable.assign(values[name])

    @staticmethod
    def _read(group: dict[str, Any]) -> Weights:
        return {name: variable.numpy() for name, variable in group.items()}
