"""Dropout in the engine: what it drops, and that the same things are dropped each time."""

import numpy as np
import pytest
from clones import network

from lottery.datasets.dataset import Dataset
from lottery.datasets.split import Split
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Model, Train
from lottery.training import models, trainer
from lottery.training.architectures import Dropout
from lottery.training.schedule import Order

SHAPE, CLASSES = (8, 8, 1), 4
CONV2 = network("conv2", SHAPE, CLASSES)
TRAIN = Train(optimizer="sgd", learning_rate=0.1, batch_size=10, iterations=12, evaluate_every=4)


def dataset():
    """60 images to train on, 12 to validate and 12 to test."""
    images = np.random.default_rng(0).integers(0, 256, (84, *SHAPE), np.uint8)
    facts = {"image_shape": SHAPE, "classes": CLASSES, "test": 12, "own_test": True}
    return Dataset(images, np.arange(84, dtype=np.int32) % CLASSES, facts)


DATA = dataset()
SPLIT = Split(*np.split(np.arange(84, dtype=np.int32), [60, 72]))


def make(dropout=0.5, **changes):
    model = Model(name="conv2", initializer="glorot_normal", dropout=dropout)
    return trainer.Trainer(model, TRAIN.model_copy(update=changes), DATA)


@pytest.fixture(scope="module")
def engine():
    return make()


@pytest.fixture(scope="module")
def start():
    weights, kinds = models.initialise(CONV2, "test", 0)
    return weights, Mask.full({name: weights[name].shape for name in kinds})


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def dropped(seed, name="dropout1", rate=0.25, size=200_000):
    layer = Dropout(rate, name=name)
    layer.seed = np.array(seed, np.int32)
    return layer(np.ones((1, size), np.float32), training=True).numpy()


def test_a_share_of_the_units_is_zero_and_the_others_are_scaled_up():
    found = dropped((3, 4))
    assert set(np.unique(found)) == {0, np.float32(1 / 0.75)}
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.005)


def test_masks_differ_between_seeds_iterations_and_layers_and_are_the_same_again():
    found = [dropped((3, 4)), dropped((3, 5)), dropped((4, 4)), dropped((3, 4), "dropout2")]
    for number, one in enumerate(found):
        for other in found[:number]:
            assert np.mean((one == 0) & (other == 0)) == pytest.approx(
                0.0625, abs=0.005
            )  # independent
    assert np.array_equal(found[0], dropped((3, 4)))


def test_networks_with_and_without_have_the_same_weights_and_the_same_outputs_outside_training(
    start,
):
    images = np.random.default_rng(0).random((5, *SHAPE), np.float32)
    outputs = []
    for dropout in (0.0, 0.5):
        model = models.build(CONV2, dropout=dropout)
        models.assign(model, start[0])
        outputs.append(model(images, training=False).numpy())
    assert np.array_equal(*outputs)


def test_training_with_dropout_repeats_itself_and_differs_from_training_without(engine, start):
    one = engine.run(*start, Order("test", 0), SPLIT, iterations=12)
    again = make().run(*start, Order("test", 0), SPLIT, iterations=12)
    assert same(one.weights, again.weights)
    assert one.history == again.history
    assert not same(
        one.weights, make(dropout=0.0).run(*start, Order("test", 0), SPLIT, iterations=12).weights
    )
    assert not same(
        one.weights, engine.run(*start, Order("other purpose", 0), SPLIT, iterations=12).weights
    )


def test_a_resumed_run_drops_what_an_unbroken_one_does(engine, start):
    states = {}
    whole = engine.run(
        *start,
        Order("test", 0),
        SPLIT,
        iterations=12,
        on_evaluation=lambda i, state: states.update({i: state()}),
    )
    resumed = engine.run(*start, Order("test", 0), SPLIT, iterations=12, resume=states[8])
    assert same(whole.weights, resumed.weights)
    assert whole.history == resumed.history


def test_an_architecture_without_hidden_dense_layers_takes_none():
    with pytest.raises(LotteryError, match=r"model\.dropout: resnet20 takes none"):
        models.build(network("resnet20", (8, 8, 3)), dropout=0.5)
