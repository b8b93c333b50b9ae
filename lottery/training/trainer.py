"""One training run: the compiled loop, masks, evaluation, early stop.

A Trainer is traced once for an architecture and serves every run of it: a run only assigns weights
and masks. The loop over the iterations between two evaluations runs inside one ``tf.function``;
the images lie on the device as uint8 and are gathered and scaled there.
"""

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lottery.datasets.split import Part
from lottery.masks import Mask
from lottery.params import EarlyStopping, Model, Train
from lottery.streams import stream, stream_seed
from lottery.training.models import Dropout, Weights, build, kinds, variables

import tensorflow as tf  # isort: skip  (after lottery.models, which sets TF_USE_LEGACY_KERAS)

ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-7}  # Keras' defaults

HISTORY = (
    "iteration",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)
History = dict[str, list[float]]
"""One list a column of HISTORY, one entry an evaluation. Training metrics are means over the batches
since the evaluation before (NaN at the first); losses are cross-entropies in nats, accuracies in [0, 1]."""


class Diverged(Exception):
    """The loss became NaN or infinite; ``iteration`` is the evaluation at which that was seen."""

    def __init__(self, iteration: int) -> None:
        super().__init__(iteration)
        self.iteration = iteration


class InvariantBroken(AssertionError):
    """Something that must always hold did not: a defect of the program, never of its input."""


@dataclass
class State:
    """Where a run stands after an evaluation; all that is needed to go on from there."""

    iteration: int
    weights: Weights
    slots: Weights
    history: History
    kept: dict[int, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class Order:
    """The order of the training images: a pure function of (purpose, seed, epoch)."""

    purpose: str
    seed: int

    def batches(self, start: int, stop: int, images: int, batch_size: int) -> np.ndarray:
        """Rows of the training set for the iterations ``[start, stop)``: int32 ``[stop - start, batch_size]``.

        An epoch is a fresh permutation cut into ``images // batch_size`` batches; the rest is left out.
        """
        per_epoch = images // batch_size
        first, last = start // per_epoch, (stop - 1) // per_epoch
        epochs = [self._epoch(epoch, images, batch_size) for epoch in range(first, last + 1)]
        offset = first * per_epoch
        return np.concatenate(epochs)[start - offset : stop - offset].astype(np.int32)

    def _epoch(self, epoch: int, images: int, batch_size: int) -> np.ndarray:
        per_epoch = images // batch_size
        rows = stream(self.purpose, self.seed, epoch).permutation(images)
        return rows[: per_epoch * batch_size].reshape(per_epoch, batch_size)

    def changes(self, start: int, stop: int, images: int, train: Train) -> np.ndarray:
        """How each image of ``batches`` is changed: whether flipped, and the crop's top and left, int32 ``[stop - start, batch_size, 3]``.

        What happens to an image is a function of (purpose, seed, epoch, image).
        """
        assert train.augmentation is not None
        per_epoch = images // train.batch_size
        first, last = start // per_epoch, (stop - 1) // per_epoch
        highest = [2 if train.augmentation.flip else 1, *[2 * train.augmentation.crop + 1] * 2]
        epochs = []
        for epoch in range(first, last + 1):
            of_image = stream(f"augmentation of {self.purpose}", self.seed, epoch).integers(
                0, highest, (images, 3)
            )
            epochs.append(of_image[self._epoch(epoch, images, train.batch_size)])
        offset = first * per_epoch
        return np.concatenate(epochs)[start - offset : stop - offset].astype(np.int32)

    def dropout_seeds(self, start: int, stop: int) -> np.ndarray:
        """What the masks of dropout are drawn from at each iteration: int32 ``[stop - start, 2]``; (purpose and seed, iteration)."""
        seed = stream_seed(f"dropout of {self.purpose}", self.seed) % 2**31
        return np.stack([np.full(stop - start, seed), np.arange(start, stop)], axis=1).astype(
            np.int32
        )


def configure(threads: int, worker: int = 0) -> None:
    """Sets TensorFlow up for this process: deterministic kernels, a fixed number of threads, GPU memory as needed.

    On a GPU float32 means float32: TF32, which TensorFlow turns on by itself, keeps 10 bits of a product's mantissa.
    Of several GPUs, workers take turns: each process sees one. To be called before anything is computed;
    TensorFlow refuses a later change with a RuntimeError.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = gpus[worker % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)


def device_name() -> str:
    """The device that runs are computed on, with its model: ``GPU NVIDIA …`` where TensorFlow sees one, else ``CPU``."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "CPU"
    return "GPU " + tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")


def changed(images: tf.Tensor, changes: tf.Tensor, crop: int) -> tf.Tensor:
    """Images ``[n, height, width, channels]``, each flipped left to right where ``changes[:, 0]``, padded by ``crop``
    zeros on each side and cut to its size again at the top and left of ``changes[:, 1:]`` (He et al. 2016, section 4.2)."""
    _, height, width, _ = images.shape
    flip, top, left = (changes[:, i, tf.newaxis] for i in range(3))
    columns = tf.range(width)
    padded = tf.pad(images, [[0, 0], [crop, crop], [crop, crop], [0, 0]])
    rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    across = left + tf.where(flip > 0, width - 1 - columns, columns)
    return tf.gather(rows, across, axis=2, batch_dims=1)


def learning_rates(train: Train, start: int, stop: int) -> np.ndarray:
    """The learning rate of each iteration in ``[start, stop)``: float64."""
    iterations = np.arange(start, stop)
    rates = np.full(len(iterations), train.learning_rate)
    if train.warmup_iterations:  # linear (Goyal et al. 2017, section 2.2)
        rates *= np.minimum(1, (iterations + 1) / train.warmup_iterations)
    if train.learning_rate_steps is not None:
        steps = np.searchsorted(train.learning_rate_steps.iterations, iterations, side="right")
        rates *= train.learning_rate_steps.factor**steps
    return rates


def stopped_early(validation_losses: list[float], rule: EarlyStopping | None) -> bool:
    """Whether the rule ends a run with these validation losses (the first is the one before training)."""
    if rule is None:
        return False
    best, waited = math.inf, 0
    for loss in validation_losses:
        if loss < best - rule.min_delta:
            best, waited = loss, 0
        else:
            waited += 1
    return waited >= rule.patience


class Trainer:
    """Trains networks of one architecture on one dataset.

    Args:
        model, train: which network, and how it is trained.
        train_part, validation, test: images uint8 ``[n, height, width, channels]``, labels int32 ``[n]``.
        classes: number of classes.
        evaluation_batch: images evaluated at once; bounds the memory.
    """

    def __init__(
        self,
        model: Model,
        train: Train,
        *,
        train_part: Part,
        validation: Part,
        test: Part,
        classes: int,
        evaluation_batch: int = 500,
    ) -> None:
        self.train = train
        self._validation_size = len(validation.labels)
        self._evaluation_batch = evaluation_batch
        self._images = tf.constant(train_part.images)
        self._labels = tf.constant(train_part.labels, tf.int64)
        held_out = [validation, test]
        self._held_out_images = tf.constant(np.concatenate([p.images for p in held_out]))
        self._held_out_labels = tf.constant(np.concatenate([p.labels for p in held_out]), tf.int64)

        shape = tuple(train_part.images.shape[1:])
        self._model = build(
            model.name, shape, classes, train.precision, width=model.width, dropout=model.dropout
        )
        self._dropout = [layer for layer in self._model.layers if isinstance(layer, Dropout)]
        self._input_type = tf.bfloat16 if train.precision == "bfloat16" else tf.float32
        self._variables = variables(self._model)
        self._trained = {name: v for name, v in self._variables.items() if v.trainable}
        slot_names = {"adam": ("m", "v"), "sgd": ("momentum",)}[train.optimizer]
        self._slots = {
            f"{slot}/{name}": tf.Variable(tf.zeros(v.shape), trainable=False)
            for slot in slot_names
            for name, v in self._trained.items()
        }
        self._masks = {
            name: tf.Variable(tf.ones(self._variables[name].shape), trainable=False)
            for name in kinds(self._model)
        }
        image = tf.TensorSpec((None, *shape), tf.uint8)
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
            self._evaluate_all, input_signature=[image, label], autograph=False
        )

    def _logits(self, images: tf.Tensor, *, training: bool) -> tf.Tensor:
        scaled = tf.cast(images, tf.float32) / 255.0
        return self._model(tf.cast(scaled, self._input_type), training=training)

    def _train_interval(
        self, images: Any, labels: Any, rows: Any, step_sizes: Any, *noise: Any
    ) -> Any:
        def iteration(i: Any, loss_sum: Any, correct: Any) -> Any:
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
            return (
                i + 1,
                loss_sum + loss,
                correct + tf.math.count_nonzero(tf.argmax(logits, axis=1) == truth),
            )

        steps = tf.shape(rows)[0]
        start = (tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64))
        _, loss_sum, correct = tf.while_loop(
            lambda i, *_: i < steps, iteration, start, parallel_iterations=1
        )
        return loss_sum, correct

    def _update(self, name: str, variable: Any, gradient: Any, step_size: Any) -> None:
        """One optimiser update, by TensorFlow's fused kernels.

        A pruned weight has gradient 0 and slots 0, so its update is 0 as well: it stays 0 by itself.
        """
        if self.train.weight_decay:
            gradient += self.train.weight_decay * variable
        if name in self._masks:
            gradient *= self._masks[name]
        if self.train.optimizer == "adam":
            # The bias correction (Kingma & Ba 2015, section 2, last paragraph) is in the step size.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._slots[f"m/{name}"].handle,
                v=self._slots[f"v/{name}"].handle,
                beta1_power=0.0,
                beta2_power=0.0,
                lr=step_size,
                grad=gradient,
                **ADAM,
            )
        else:
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=self._slots[f"momentum/{name}"].handle,
                lr=step_size,
                grad=gradient,
                momentum=self.train.momentum,
            )

    def _evaluate_all(self, images: Any, labels: Any) -> Any:
        size = self._evaluation_batch

        def part(i: Any, losses: Any, hits: Any) -> Any:
            truth = labels[i * size : (i + 1) * size]
            logits = self._logits(images[i * size : (i + 1) * size], training=False)
            losses = losses.write(i, tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits))
            return i + 1, losses, hits.write(i, tf.argmax(logits, axis=1) == truth)

        parts = (tf.shape(images)[0] + size - 1) // size
        collected = [
            tf.TensorArray(t, size=parts, infer_shape=False) for t in (tf.float32, tf.bool)
        ]
        _, losses, hits = tf.while_loop(
            lambda i, *_: i < parts, part, (tf.constant(0), *collected), parallel_iterations=1
        )
        return losses.concat(), hits.concat()

    def _step_sizes(self, first: int, start: int, stop: int) -> np.ndarray:
        """What multiplies the optimiser's direction at each iteration; float32, computed in float64."""
        rates = learning_rates(self.train, start, stop)
        if self.train.optimizer == "adam":
            steps = np.arange(start - first + 1, stop - first + 1)
            rates = rates * np.sqrt(1 - ADAM["beta2"] ** steps) / (1 - ADAM["beta1"] ** steps)
        return rates.astype(np.float32)

    def evaluate(self, weights: Weights | None = None) -> dict[str, float]:
        """Loss and accuracy of weights, by default the present ones, on the validation and the test set."""
        if weights is not None:
            self._assign(self._variables, weights)
        losses, hits = self._evaluate(self._held_out_images, self._held_out_labels)
        losses, hits = losses.numpy().astype(np.float64), hits.numpy()
        n = self._validation_size
        return {
            "validation_loss": float(losses[:n].mean()),
            "validation_accuracy": float(hits[:n].mean()),
            "test_loss": float(losses[n:].mean()),
            "test_accuracy": float(hits[n:].mean()),
        }

    def run(
        self,
        weights: Weights,
        mask: Mask,
        order: Order,
        *,
        start: int = 0,
        iterations: int,
        keep: Collection[int] = (),
        resume: State | None = None,
        on_evaluation: Callable[[int, Callable[[], State]], None] = lambda iteration, state: None,
    ) -> State:
        """Trains from ``weights`` under ``mask``, from iteration ``start`` to ``iterations``.

        The optimiser starts afresh; data order and learning rate go on at ``start``, as in a run that
        reached it. Weights are evaluated at ``start``, then every ``evaluate_every`` iterations and at the end.

        Args:
            weights: every variable; those pruned by ``mask`` must be 0.
            keep: iterations whose weights the result keeps.
            resume: the state to go on from, instead of starting.
            on_evaluation: called after each evaluation with the iteration and a function that gives the state.

        Raises:
            Diverged: the loss is no longer finite.
            InvariantBroken: a pruned weight or its optimiser slot is not 0.
        """
        self._check_pruned_are_zero(mask, weights, "at the start")
        if resume is None:
            state = State(
                start,
                weights,
                {name: np.zeros(v.shape, np.float32) for name, v in self._slots.items()},
                {},
            )
        else:
            state = resume
        self._assign(self._variables, state.weights)
        self._assign(self._slots, state.slots)
        for name, variable in self._masks.items():
            variable.assign(mask.layers[name].astype(np.float32))
        history: History = {c: list(state.history.get(c, [])) for c in HISTORY}
        kept = dict(state.kept)
        iteration = state.iteration
        if iteration == start and start in keep:
            kept[start] = self._read(self._variables)

        def snapshot() -> State:
            return State(
                iteration,
                self._read(self._variables),
                self._read(self._slots),
                copy.deepcopy(history),
                dict(kept),
            )

        if not history["iteration"]:
            self._record(history, iteration, math.nan, math.nan)
            on_evaluation(iteration, snapshot)
        every = self.train.evaluate_every
        while iteration < iterations and not stopped_early(
            history["validation_loss"], self.train.early_stopping
        ):
            boundary = min(iterations, (iteration // every + 1) * every)
            loss, correct, begun = 0.0, 0, iteration
            for stop in sorted({k for k in keep if iteration < k < boundary} | {boundary}):
                rows = order.batches(iteration, stop, len(self._labels), self.train.batch_size)
                inputs = [
                    self._images,
                    self._labels,
                    rows,
                    self._step_sizes(start, iteration, stop),
                ]
                if self.train.augmentation:
                    inputs.append(order.changes(iteration, stop, len(self._labels), self.train))
                if self._dropout:
                    inputs.append(order.dropout_seeds(iteration, stop))
                sums = self._interval(*inputs)
                loss, correct, iteration = loss + float(sums[0]), correct + int(sums[1]), stop
                if stop in keep:
                    kept[stop] = self._read(self._variables)
            steps = iteration - begun
            self._record(
                history, iteration, loss / steps, correct / (steps * self.train.batch_size)
            )
            on_evaluation(iteration, snapshot)
        final = snapshot()
        self._check_pruned_are_zero(mask, final.weights, "after training")
        for slot in {name.split("/")[0] for name in self._slots}:
            of_slot = {
                n.split("/", 1)[1]: v for n, v in final.slots.items() if n.startswith(f"{slot}/")
            }
            self._check_pruned_are_zero(mask, of_slot, f"in the optimiser's {slot} after training")
        return final

    def _record(
        self, history: History, iteration: int, train_loss: float, train_accuracy: float
    ) -> None:
        metrics = {"train_loss": train_loss, "train_accuracy": train_accuracy, **self.evaluate()}
        first = not history["iteration"]
        if not math.isfinite(metrics["validation_loss"]) or not (
            first or math.isfinite(train_loss)
        ):
            raise Diverged(iteration)
        history["iteration"].append(iteration)
        for name, value in metrics.items():
            history[name].append(value)

    @staticmethod
    def _assign(group: dict[str, Any], values: Weights) -> None:
        for name, variable in group.items():
            variable.assign(values[name])

    @staticmethod
    def _read(group: dict[str, Any]) -> Weights:
        return {name: variable.numpy() for name, variable in group.items()}

    @staticmethod
    def _check_pruned_are_zero(mask: Mask, values: Weights, when: str) -> None:
        for name, keep in mask.layers.items():
            if np.any(values[name][~keep]):
                raise InvariantBroken(f"{name}: a pruned weight is not 0 {when}")
