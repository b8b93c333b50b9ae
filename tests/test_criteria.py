"""Pruning criteria, held against their definitions in float64 and against what is known of them."""

import numpy as np
import pytest

from lottery.datasets.split import Part
from lottery.masks import Mask
from lottery.params import Model
from lottery.tickets import criteria
from lottery.tickets.pruning import Prune, global_counts, highest
from lottery.training import models

SHAPE, CLASSES = (3, 3, 1), 4
MODEL = Model(name="lenet_300_100", initializer="glorot_normal")
NETWORK = {"model": "lenet_300_100", "image_shape": SHAPE, "classes": CLASSES}
KERNELS = ["dense1/kernel", "dense2/kernel", "output/kernel"]


def arrays(*rows):
    return tuple(np.array(row, np.float32) for row in rows)


W, W0, G = arrays([1, -2, 0, 0.5], [-3, 1, 2, 0.5], [2, 0.25, -7, -1])


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("magnitude", [1, 2, 0, 0.5]),
        ("magnitude_increase", [-2, 1, -2, 0]),
        ("movement", [4, 3, 2, 0]),
        ("random", [2, 0.25, -7, -1]),
        ("snip", [2, 0.5, 0, 0.5]),
        ("grasp", [2, -0.5, 0, -0.5]),
        ("synflow", [2, 0.5, 0, -0.5]),
    ],
)
def test_a_score_is_what_its_source_defines(criterion, expected):
    assert criteria.CRITERIA[criterion](W, W0, G).tolist() == expected


# Gradients, against a network written out in float64


@pytest.fixture(scope="module")
def weights():
    return models.initialise(
        models.build("lenet_300_100", SHAPE, CLASSES), "glorot_normal", "test", 0
    )


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    return Part(
        generator.integers(0, 256, (12, *SHAPE), np.uint8), np.arange(12, dtype=np.int32) % CLASSES
    )


def gradient_by_definition(weights, batch):
    """Backpropagation of the mean cross-entropy through LeNet-300-100."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    h0 = batch.images.reshape(len(batch.labels), -1) / 255
    a1 = h0 @ w["dense1/kernel"] + w["dense1/bias"]
    a2 = np.maximum(a1, 0) @ w["dense2/kernel"] + w["dense2/bias"]
    logits = np.maximum(a2, 0) @ w["output/kernel"] + w["output/bias"]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    d3 = (p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[batch.labels]) / len(batch.labels)
    d2 = d3 @ w["output/kernel"].T * (a2 > 0)
    d1 = d2 @ w["dense2/kernel"].T * (a1 > 0)
    return dict(
        zip(KERNELS, [h0.T @ d1, np.maximum(a1, 0).T @ d2, np.maximum(a2, 0).T @ d3], strict=True)
    )


def assert_near(found, expected):
    for name in KERNELS:
        assert np.abs(found[name] - expected[name]).max() < 1e-4 * np.abs(expected[name]).max(), (
            name
        )


def test_snip_multiplies_by_the_gradient_of_the_loss(weights, batch):
    found = criteria.gradients("snip", weights, KERNELS, batch, **NETWORK)
    assert_near(found, gradient_by_definition(weights, batch))


def test_grasp_multiplies_by_the_hessian_times_the_gradient(weights, batch):
    found = criteria.gradients("grasp", weights, KERNELS, batch, **NETWORK)
    gradient = gradient_by_definition(weights, batch)
    step = 1e-5

    def moved(sign):
        at = {
            n: v.astype(np.float64) + sign * step * gradient.get(n, 0) for n, v in weights.items()
        }
        return gradient_by_definition(at, batch)

    ahead, behind = moved(1), moved(-1)
    assert_near(found, {name: (ahead[name] - behind[name]) / (2 * step) for name in KERNELS})


@pytest.mark.parametrize(("model", "image_shape"), [("lenet_300_100", SHAPE), ("conv2", (4, 4, 3))])
def test_synflow_is_conserved_from_layer_to_layer(model, image_shape):
    """Tanaka et al. 2020, theorem 1: with biases zero the scores of every layer sum to the flow R."""
    network = models.build(model, image_shape, CLASSES)
    weights, names = (
        models.initialise(network, "glorot_uniform", "test", 1),
        list(models.kinds(network)),
    )
    gradients = criteria.gradients(
        "synflow", weights, names, None, model=model, image_shape=image_shape, classes=CLASSES
    )
    scores = criteria.scores("synflow", weights, weights, gradients, names)
    for name, variable in models.variables(network).items():
        variable.assign(np.abs(weights[name]))
    flow = float(network(np.ones((1, *image_shape), np.float32)).numpy().sum())
    assert flow > 0
    for name in names:
        assert scores[name].min() >= 0
        assert scores[name].sum() == pytest.approx(flow, rel=1e-4)


def test_second_derivatives_exist_for_convolutions_and_pooling():
    network = models.build("conv2", (4, 4, 3), CLASSES)
    weights, names = (
        models.initialise(network, "glorot_uniform", "test", 2),
        list(models.kinds(network)),
    )
    part = Part(
        np.random.default_rng(3).integers(0, 256, (8, 4, 4, 3), np.uint8),
        np.arange(8, dtype=np.int32) % 4,
    )
    found = criteria.gradients(
        "grasp", weights, names, part, model="conv2", image_shape=(4, 4, 3), classes=CLASSES
    )
    assert all(np.count_nonzero(g) > 0 and np.isfinite(g).all() for g in found.values())


def test_the_batch_holds_the_same_number_of_images_of_each_class_and_depends_on_the_seed():
    labels = np.repeat(np.arange(4, dtype=np.int32), [30, 11, 10, 3])
    part = Part(np.arange(54, dtype=np.uint8).reshape(54, 1, 1, 1), labels)
    batch = criteria.batch(part, 4, 0)
    assert np.bincount(batch.labels).tolist() == [10, 10, 10, 3]
    assert len(np.unique(batch.images)) == 33
    assert all(
        labels[int(i)] == label for i, label in zip(batch.images.ravel(), batch.labels, strict=True)
    )
    assert np.array_equal(criteria.batch(part, 4, 0).images, batch.images)
    assert not np.array_equal(criteria.batch(part, 4, 1).images, batch.images)


# From scores to masks


def test_one_threshold_for_all_layers_counts_equal_scores_from_the_first():
    a, b, c = arrays([5, 1, 3], [3, 9, 0], [-1, -2, 4])
    scores, mask = {"a": a, "b": b, "c": c}, Mask.full({"a": (3,), "b": (3,), "c": (3,)})
    assert global_counts(scores, mask, 4) == {
        "a": 2,
        "b": 1,
        "c": 1,
    }  # 9, 5, 4 and the first of the two 3s
    assert global_counts(scores, mask, 5) == {"a": 2, "b": 2, "c": 1}
    assert global_counts(scores, mask, 1) == {"a": 0, "b": 1, "c": 0}
    assert global_counts(scores, mask, 9) == {"a": 3, "b": 3, "c": 3}
    survivors = Mask(
        {
            "a": np.array([False, True, True]),
            "b": np.array([True, False, True]),
            "c": mask.layers["c"],
        }
    )
    assert global_counts(scores, survivors, 3) == {"a": 1, "b": 1, "c": 1}
    for total in (0, 8):
        with pytest.raises(ValueError, match=f"asked to keep {total} of 7 weights"):
            global_counts(scores, survivors, total)


def test_the_highest_scores_survive_and_of_equals_the_first():
    (scores,) = arrays([[2, -1, 2], [0, 2, 5]])
    mask = Mask({"a": np.array([[True, True, True], [True, True, False]])})
    assert highest({"a": scores}, mask, {"a": 2}).layers["a"].tolist() == [
        [True, False, True],
        [False, False, False],
    ]
    assert highest({"a": scores}, mask, {"a": 4}).layers["a"].tolist() == [
        [True, False, True],
        [True, True, False],
    ]
    assert not highest({"a": scores}, mask, {"a": 0}).layers["a"].any()


def make(criterion, weights, mask, keep, batch, seed=0):
    initial = models.initialise(
        models.build("lenet_300_100", SHAPE, CLASSES), "glorot_normal", "test", 7
    )
    task = Prune(
        "mask", MODEL, SHAPE, CLASSES, criterion, weights, initial, mask, keep, seed, batch
    )
    return task(lambda iterations: None)


@pytest.mark.parametrize("criterion", list(criteria.CRITERIA))
def test_every_criterion_makes_nested_masks_of_exact_counts_by_layer_and_globally(
    criterion, weights, batch
):
    full = Mask.full({name: weights[name].shape for name in KERNELS})
    one = {name: size // 2 for name, size in full.sizes.items()}
    first = make(criterion, weights, full, one, batch)
    assert first.counts == one
    second = make(
        criterion, weights, first, {name: count // 3 for name, count in one.items()}, batch
    )
    assert second.within(first)
    assert second.counts == {name: count // 3 for name, count in one.items()}
    overall = make(criterion, weights, full, 5000, batch)
    assert sum(overall.counts.values()) == 5000
    if criterion != "random":  # which lets each layer lose the same share, give or take
        assert len({round(overall.counts[n] / full.sizes[n], 1) for n in KERNELS}) > 1
    assert all(
        np.array_equal(make(criterion, weights, full, 5000, batch).layers[n], overall.layers[n])
        for n in KERNELS
    )


def test_global_magnitude_pruning_keeps_the_largest_weights_of_the_network(weights, batch):
    full = Mask.full({name: weights[name].shape for name in KERNELS})
    mask = make("magnitude", weights, full, 3000, batch)
    kept = np.concatenate([np.abs(weights[n][mask.layers[n]]) for n in KERNELS])
    pruned = np.concatenate([np.abs(weights[n][~mask.layers[n]]) for n in KERNELS])
    assert len(kept) == 3000
    assert kept.min() >= pruned.max()


def test_random_pruning_depends_on_the_seed_and_keeps_each_layer_in_proportion(weights, batch):
    full = Mask.full({name: weights[name].shape for name in KERNELS})
    one, other = (
        make("random", weights, full, full.sizes["dense2/kernel"] // 2, batch, seed)
        for seed in (0, 1)
    )
    assert not np.array_equal(one.layers["dense2/kernel"], other.layers["dense2/kernel"])
    share = sum(one.counts.values()) / sum(one.sizes.values())
    for name, size in one.sizes.items():
        assert one.counts[name] == pytest.approx(
            share * size, abs=4 * (share * (1 - share) * size) ** 0.5
        )
