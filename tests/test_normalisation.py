"""What a layer or an image does in training alone: normalisation, dropout, augmentation."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from clones import network
from networks import logits_of, random_data, same

from lottery.errors import LotteryError
from lottery.masks import Mask, random_mask
from lottery.params import Augmentation, Train
from lottery.streams import stream
from lottery.training import models
from lottery.training.architectures import Dropout
from lottery.training.engine import changed
from lottery.training.schedule import Order
from lottery.training.trainer import Trainer

SHAPE, CLASSES = (8, 8, 3), 4
DATA, SPLIT = random_data(SHAPE, CLASSES)
ORDER = Order("test order", 0)
SGD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}
TRAIN = Train(**SGD, batch_size=10, iterations=12, evaluate_every=4)
NETWORKS = {
    "residual": network("networks:residual", SHAPE, CLASSES, initializer="he_normal"),
    "conv2": network("conv2", SHAPE, CLASSES, dropout=0.5),
}


def engine(of="residual", augmentation=None, **model):
    train = TRAIN.model_copy(update={"augmentation": augmentation})
    return Trainer(NETWORKS[of].model.model_copy(update=model), train, DATA)


@pytest.fixture(scope="module")
def plain():
    return engine()


@pytest.fixture(scope="module")
def augmented():
    return engine("conv2", Augmentation(flip=True, crop=1))


@pytest.fixture(scope="module")
def dropping():
    return engine("conv2")


def start_of(of):
    """Fresh weights, half of them pruned, and the mask."""
    weights, kinds = models.initialise(NETWORKS[of], "test", 0)
    half = {n: np.arange(weights[n].size).reshape(weights[n].shape) * 2 for n in kinds}
    mask = random_mask(Mask({n: v < v.size for n, v in half.items()}), stream("test", 1))
    return mask.apply(weights), mask


START = {of: start_of(of) for of in NETWORKS}


def trained(trainer, iterations=12, of="residual", order=ORDER, **options):
    return trainer.run(*START[of], order, SPLIT, iterations=iterations, **options)


@pytest.mark.parametrize(("of", "fixture"), [("residual", "plain"), ("conv2", "augmented")])
def test_a_resumed_run_continues_bit_for_bit(of, fixture, request):
    """With moving statistics, augmented images or dropout."""
    trainer, states = request.getfixturevalue(fixture), {}
    keep = lambda iteration, snapshot: states.setdefault(iteration, snapshot())  # noqa: E731
    whole = trained(trainer, of=of, on_evaluation=keep)
    trained(trainer, 4, of, Order("between", 1))
    resumed = trained(trainer, of=of, resume=states[4])
    assert same(whole.weights, resumed.weights)
    assert same(whole.slots, resumed.slots)
    assert repr(whole.history) == repr(resumed.history)
    assert not any("moving" in slot for slot in whole.slots)
    for name, keep in START[of][1].layers.items():
        assert not whole.weights[name][~keep].any()


# Batch normalisation


def test_training_is_keras_training_with_the_same_batches(plain):
    """Moving statistics included: the engine against Keras' layers and optimiser, step by step.

    Two steps: in a third, rounding puts a unit on the other side of its ReLU's kink.
    """
    weights, mask = START["residual"]
    found = trained(plain, 2).weights
    model = models.build(NETWORKS["residual"])
    models.assign(model, weights)
    optimizer = tf_keras.optimizers.SGD(0.05, momentum=0.9)
    cross_entropy = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for rows in ORDER.batches(0, 2, 60, 10):
        with tf.GradientTape() as tape:
            logits = model(DATA.images[rows].astype(np.float32) / 255, training=True)
            loss = cross_entropy(DATA.labels[rows], logits)
        trainable = model.trainable_variables
        gradients = zip(trainable, tape.gradient(loss, trainable), strict=True)
        keep = {name: layer.astype(np.float32) for name, layer in mask.layers.items()}
        masked = [(g * keep.get(v.name.removesuffix(":0"), 1), v) for v, g in gradients]
        optimizer.apply_gradients(masked)
    for name, variable in models.variables(model).items():
        assert np.allclose(found[name], variable.numpy(), rtol=1e-5, atol=1e-6), name
    statistics = [name for name in found if "moving" in name]
    assert len(statistics) == 8
    assert all(not np.array_equal(found[name], weights[name]) for name in statistics)


def test_evaluation_uses_the_moving_statistics_and_changes_nothing(plain):
    state = trained(plain, 4)
    images, labels = DATA.part(SPLIT.test)
    found = logits_of(state.weights, images, NETWORKS["residual"]).argmax(axis=1)
    assert state.history["test_accuracy"][-1] == np.mean(found == labels)
    before = plain._read(plain._variables)
    plain.evaluate(SPLIT.test)
    assert same(before, plain._read(plain._variables))


def test_statistics_estimated_anew_are_those_of_the_images_whatever_they_were(plain):
    weights = trained(plain).weights
    spoilt = {n: v + 9 if "moving" in n else v for n, v in weights.items()}
    first = conv(DATA.images[SPLIT.train] / 255, weights["conv0/kernel"].astype(np.float64))
    mean, variance = first.mean(axis=(0, 1, 2)), first.var(axis=(0, 1, 2))
    for given in (weights, spoilt):
        found = plain.with_statistics_of(SPLIT.train, given)
        assert all(np.array_equal(found[n], weights[n]) for n in weights if "moving" not in n)
        assert np.allclose(found["conv0_norm/moving_mean"], mean, atol=1e-5)
        assert np.allclose(found["conv0_norm/moving_variance"], variance, rtol=1e-3)
    losses = [plain.evaluate(SPLIT.train, w)[0] for w in (found, spoilt)]
    assert losses[0] < losses[1]
    assert same(trained(plain).weights, weights)  # training goes on as before


def conv(images, kernel):
    """A 3×3 convolution of same size, in float64."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nyxcij,ijcf->nyxf", windows, kernel)


# Dropout


def dropped(seed, name="dropout1", training=True):
    layer = Dropout(0.25, name=name)
    layer.seed = np.array(seed, np.int32)
    return layer(np.ones((1, 200_000), np.float32), training=training).numpy()


def test_a_share_of_the_units_is_zero_independently_by_seed_iteration_and_layer():
    found = [dropped((3, 4)), dropped((3, 5)), dropped((4, 4)), dropped((3, 4), "dropout2")]
    assert set(np.unique(found[0])) == {0, np.float32(1 / 0.75)}  # the others are scaled up
    assert np.mean(found[0] == 0) == pytest.approx(0.25, abs=0.005)
    for one, other in itertools.combinations(found, 2):
        assert np.mean((one == 0) & (other == 0)) == pytest.approx(0.0625, abs=0.005)
    assert np.array_equal(found[0], dropped((3, 4)))
    assert (dropped((3, 4), training=False) == 1).all()


def test_dropout_is_drawn_anew_in_each_iteration_and_follows_the_purpose(dropping):
    one, without = (trained(t, of="conv2") for t in (dropping, engine("conv2", dropout=0.0)))
    assert not same(one.weights, without.weights)
    in_parts = trained(dropping, of="conv2", keep=[1, 2, 3])
    assert same(one.weights, in_parts.weights)
    for other in (Order("test order", 1), Order("another", 0)):
        assert not np.array_equal(other.dropout_seeds(0, 4), ORDER.dropout_seeds(0, 4))
    with pytest.raises(LotteryError, match=r"model\.dropout: networks:residual takes none"):
        models.build(NETWORKS["residual"], dropout=0.5)  # it has no hidden dense layer


# Augmentation


@pytest.mark.parametrize("crop", [0, 2])
def test_changed_images_are_flipped_padded_and_cut(crop):
    images = np.random.default_rng(0).integers(1, 256, (50, 5, 6, 2), np.uint8)
    highest = [2, 2 * crop + 1, 2 * crop + 1]
    changes = np.random.default_rng(1).integers(0, highest, (50, 3)).astype(np.int32)
    found = changed(images, changes, crop).numpy()
    for image, (flip, top, left), result in zip(images, changes, found, strict=True):
        padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)))
        cut = padded[top : top + 5, left : left + 6]
        assert np.array_equal(result, cut[:, ::-1] if flip else cut)


def by_image(batch_size, epoch, flip=True, crop=4, order=ORDER):
    """What happens to each of 60 images in an epoch."""
    how = {"augmentation": Augmentation(flip=flip, crop=crop), "batch_size": batch_size}
    span = [epoch * 60 // batch_size, (epoch + 1) * 60 // batch_size, 60]
    changes = order.changes(*span, TRAIN.model_copy(update=how))
    assert (changes.dtype, changes.shape) == (np.int32, (60 // batch_size, batch_size, 3))
    rows = order.batches(*span, batch_size).ravel()
    return dict(zip(rows.tolist(), map(tuple, changes.reshape(-1, 3).tolist()), strict=True))


def test_what_happens_to_an_image_is_a_function_of_purpose_seed_epoch_and_image():
    assert by_image(10, 0) == by_image(12, 0)  # in other batches
    for other in (Order("test order", 1), Order("other order", 0)):
        assert by_image(10, 0) != by_image(10, 0, order=other)
    assert by_image(10, 0) != by_image(10, 1)
    everything = [change for epoch in range(100) for change in by_image(10, epoch).values()]
    expected = [{0, 1}, set(range(9)), set(range(9))]
    assert [set(values) for values in zip(*everything, strict=True)] == expected
    assert set(by_image(10, 0, flip=False, crop=0).values()) == {(0, 0, 0)}


def test_augmentation_changes_training(dropping, augmented):
    without, found = (trained(t, 4, of="conv2").weights for t in (dropping, augmented))
    assert not same(found, without)
