"""Networks with batch normalisation, augmented images and a warm-up, in the engine."""

import numpy as np
import pytest
import tf_keras
from clones import network

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Split
from lottery.masks import Mask, random_mask
from lottery.params import Augmentation, Train
from lottery.streams import stream
from lottery.training import models, trainer
from lottery.training.engine import changed
from lottery.training.schedule import Order, learning_rates

SHAPE, CLASSES = (8, 8, 3), 4
RESNET = network("resnet20", SHAPE, CLASSES, initializer="he_normal")
TRAIN = Train(
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    batch_size=10,
    iterations=12,
    evaluate_every=4,
    augmentation=Augmentation(flip=True, crop=1),
)


def dataset():
    """60 images to train on, 12 to validate and 12 to test."""
    images = np.random.default_rng(0).integers(0, 256, (84, *SHAPE), np.uint8)
    facts = {"image_shape": SHAPE, "classes": CLASSES, "test": 12, "own_test": True}
    return Dataset(images, np.arange(84, dtype=np.int32) % CLASSES, facts)


DATA = dataset()
SPLIT = Split(*np.split(np.arange(84, dtype=np.int32), [60, 72]))


def make(**changes):
    train = TRAIN.model_copy(update=changes)
    return trainer.Trainer(RESNET.model, train, DATA)


@pytest.fixture(scope="module")
def engine():
    return make()


@pytest.fixture(scope="module")
def plain():
    return make(augmentation=None)


@pytest.fixture(scope="module")
def start():
    weights, kinds = models.initialise(RESNET, "test", 0)
    full = Mask.full({name: weights[name].shape for name in kinds})
    half = {
        name: np.arange(keep.size).reshape(keep.shape) < keep.size // 2
        for name, keep in full.layers.items()
    }
    mask = random_mask(Mask(half), stream("test", 1))
    return mask.apply(weights), mask


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_resumed_run_with_moving_statistics_continues_bit_for_bit(engine, start):
    weights, mask = start
    states = {}
    order = Order("test order", 0)
    whole = engine.run(
        weights,
        mask,
        order,
        SPLIT,
        iterations=12,
        on_evaluation=lambda i, snapshot: states.setdefault(i, snapshot()),
    )
    engine.run(weights, mask, Order("between", 1), SPLIT, iterations=4)
    resumed = engine.run(weights, mask, order, SPLIT, iterations=12, resume=states[4])
    assert same(whole.weights, resumed.weights)
    assert same(whole.slots, resumed.slots)
    assert repr(whole.history) == repr(resumed.history)
    assert not any("moving" in slot for slot in whole.slots)
    for name, keep in mask.layers.items():
        assert not whole.weights[name][~keep].any()


def test_training_is_keras_training_with_the_same_batches(plain, start):
    """Moving statistics included: the engine against Keras' layers and optimiser, step by step.

    Two steps: in a third, rounding puts a unit on the other side of its ReLU's kink.
    """
    weights, mask = start
    order = Order("test order", 0)
    found = plain.run(weights, mask, order, SPLIT, iterations=2).weights

    import tensorflow as tf

    model = models.build(RESNET)
    variables = models.variables(model)
    for name, variable in variables.items():
        variable.assign(weights[name])
    optimizer = tf_keras.optimizers.SGD(0.05, momentum=0.9)
    for rows in order.batches(0, 2, 60, 10):
        with tf.GradientTape() as tape:
            logits = model(DATA.images[rows].astype(np.float32) / 255, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(DATA.labels[rows], logits)
            )
        gradients = tape.gradient(loss, model.trainable_variables)
        names = [v.name.removesuffix(":0") for v in model.trainable_variables]
        masked = [
            g * mask.layers[n].astype(np.float32) if n in mask.layers else g
            for n, g in zip(names, gradients, strict=True)
        ]
        optimizer.apply_gradients(zip(masked, model.trainable_variables, strict=True))
    for name, variable in variables.items():
        assert np.allclose(found[name], variable.numpy(), rtol=1e-5, atol=1e-6), name
    statistics = [name for name in found if "moving" in name]
    assert len(statistics) == 42
    assert all(not np.array_equal(found[name], weights[name]) for name in statistics)


def test_evaluation_uses_the_moving_statistics_and_changes_nothing(plain, start):
    weights, mask = start
    state = plain.run(weights, mask, Order("test order", 0), SPLIT, iterations=4)
    model = models.build(RESNET)
    models.assign(model, state.weights)
    images, labels = DATA.images[SPLIT.test], DATA.labels[SPLIT.test]
    logits = model(images.astype(np.float32) / 255, training=False).numpy()
    assert state.history["test_accuracy"][-1] == np.mean(logits.argmax(axis=1) == labels)
    before = plain._read(plain._variables)
    plain.evaluate(SPLIT.test)
    assert same(before, plain._read(plain._variables))


def test_statistics_estimated_anew_are_those_of_the_images_whatever_they_were(plain, start):
    weights, mask = start
    trained = plain.run(weights, mask, Order("test order", 0), SPLIT, iterations=4).weights
    spoilt = {n: v + 9 if "moving" in n else v for n, v in trained.items()}
    for given in (trained, spoilt):
        found = plain.with_statistics_of(SPLIT.train, given)
        assert same({n: v for n, v in found.items() if "moving" not in n}, trained)
        first = conv(DATA.images[SPLIT.train] / 255, trained["conv0/kernel"].astype(np.float64))
        mean, variance = first.mean(axis=(0, 1, 2)), first.var(axis=(0, 1, 2))
        assert np.allclose(found["conv0_norm/moving_mean"], mean, atol=1e-5)
        assert np.allclose(found["conv0_norm/moving_variance"], variance, rtol=1e-3)
    losses = [plain.evaluate(SPLIT.train, w)[0] for w in (found, spoilt)]
    assert losses[0] < losses[1]
    again = plain.run(weights, mask, Order("test order", 0), SPLIT, iterations=4).weights
    assert same(again, trained)  # training goes on as before


def conv(images, kernel):
    """A 3×3 convolution of same size, in float64."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nyxcij,ijcf->nyxf", windows, kernel)


# Augmentation


def test_changed_images_are_flipped_padded_and_cut():
    images = np.random.default_rng(0).integers(1, 256, (50, 5, 6, 2), np.uint8)
    changes = np.random.default_rng(1).integers(0, [2, 5, 5], (50, 3)).astype(np.int32)
    found = changed(images, changes, 2).numpy()
    for image, (flip, top, left), result in zip(images, changes, found, strict=True):
        cut = np.pad(image, ((2, 2), (2, 2), (0, 0)))[top : top + 5, left : left + 6]
        assert np.array_equal(result, cut[:, ::-1] if flip else cut)


def test_what_happens_to_an_image_is_a_function_of_seed_epoch_and_image():
    train = TRAIN.model_copy(update={"augmentation": Augmentation(flip=True, crop=4)})
    order = Order("test order", 0)
    rows, changes = order.batches(0, 24, 60, 10), order.changes(0, 24, 60, train)
    assert changes.shape == (24, 10, 3)
    assert changes.dtype == np.int32
    of_epoch = [
        dict(
            zip(rows[e : e + 6].ravel(), map(tuple, changes[e : e + 6].reshape(-1, 3)), strict=True)
        )
        for e in (0, 6, 12, 18)
    ]
    assert all(len(changes_) == 60 for changes_ in of_epoch)
    assert of_epoch[0] != of_epoch[1]
    assert np.array_equal(order.changes(5, 17, 60, train), changes[5:17])
    smaller = train.model_copy(
        update={"batch_size": 12}
    )  # other batches, the same changes of each image
    again = dict(
        zip(
            order.batches(0, 5, 60, 12).ravel(),
            map(tuple, order.changes(0, 5, 60, smaller).reshape(-1, 3)),
            strict=True,
        )
    )
    assert again == of_epoch[0]
    everything = order.changes(0, 600, 60, train).reshape(-1, 3)
    assert [set(column) for column in everything.T] == [{0, 1}, set(range(9)), set(range(9))]
    still = train.model_copy(update={"augmentation": Augmentation(flip=False, crop=0)})
    assert not order.changes(0, 24, 60, still).any()


def test_augmentation_changes_training_and_none_is_the_same_as_changing_nothing(
    engine, plain, start
):
    order = Order("test order", 0)
    augmented = engine.run(*start, order, SPLIT, iterations=4).weights
    unchanged = (
        make(augmentation=Augmentation(flip=False, crop=0))
        .run(*start, order, SPLIT, iterations=4)
        .weights
    )
    without = plain.run(*start, order, SPLIT, iterations=4).weights
    assert same(unchanged, without)
    assert not same(augmented, without)


def test_the_learning_rate_warms_up_linearly():
    train = TRAIN.model_copy(update={"warmup_iterations": 5})
    assert learning_rates(train, 0, 8) == pytest.approx(
        [0.01, 0.02, 0.03, 0.04, 0.05, 0.05, 0.05, 0.05]
    )
    assert learning_rates(train, 3, 6) == pytest.approx([0.04, 0.05, 0.05])
