"""Pruning criteria, held against their definitions in float64 and against what is known of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from clones import network
from networks import mean_loss
from tf_keras import layers

from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import CRITERIA
from lottery.params.sections import AT_INITIALISATION
from lottery.tickets import criteria
from lottery.tickets.pruning import global_counts, highest, magnitude_mask, pruned
from lottery.training import models

SHAPE, CLASSES = (3, 3, 1), 4
LENET = network("lenet_300_100", SHAPE, CLASSES)
KERNELS = ["dense1/kernel", "dense2/kernel", "output/kernel"]


def arrays(*rows):
    return tuple(np.array(row, np.float32) for row in rows)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("magnitude", [1, 2, 0, 0.5]),
        ("magnitude_increase", [-2, 1, -2, 0]),
        ("movement", [4, 3, 2, 0]),
    ],
)
def test_a_score_is_what_its_source_defines(criterion, expected):
    w, w0 = arrays([1, -2, 0, 0.5], [-3, 1, 2, 0.5])
    assert getattr(criteria, criterion)(SimpleNamespace(w=w, w0=w0)).tolist() == expected


# Scores, against finite differences in float64 of a network written out in NumPy


def small(images, classes):
    """Nine inputs, five units with batch normalisation, four classes."""
    x = layers.Conv2D(5, 3, name="hidden")(images)
    x = layers.BatchNormalization(epsilon=1e-5, name="hidden_norm")(x)
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x))
    return layers.Dense(classes, name="output")(x)


def normalised_dense(images, classes):
    """Batch normalisation of features."""
    x = layers.BatchNormalization(name="norm")(layers.Flatten(name="flatten")(images))
    return layers.Dense(classes, name="output")(x)


def normalised_layer(images, classes):
    """What is added to all units of a layer is subtracted again."""
    x = layers.Dense(5, name="hidden")(layers.Flatten(name="flatten")(images))
    return layers.Dense(classes, name="output")(layers.LayerNormalization(name="norm")(x))


def saturated(images, classes):
    """A layer whose outputs stay within -1 and 1."""
    x = layers.Dense(5, "tanh", name="hidden")(layers.Flatten(name="flatten")(images))
    return layers.Dense(classes, name="output")(x)


def known(shape, start, scale):
    """Known numbers: a sine, sampled."""
    return (scale * np.sin(start + 1.7 * np.arange(np.prod(shape)))).reshape(shape)


SMALL = {
    "hidden/kernel": known((3, 3, 1, 5), 1, 0.9),
    "hidden/bias": known(5, 2, 0.3),
    "hidden_norm/gamma": 1 + known(5, 3, 0.5),
    "hidden_norm/beta": known(5, 4, 0.4),
    "hidden_norm/moving_mean": known(5, 5, 0.5),
    "hidden_norm/moving_variance": 1 + known(5, 6, 0.6),
    "output/kernel": known((5, 4), 7, 0.8),
    "output/bias": known(4, 8, 0.2),
}


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(0).integers(0, 256, (12, *SHAPE), np.uint8)
    return Part(images, np.arange(12, dtype=np.int32) % CLASSES)


def logits_of(w, inputs, of_batch):
    """The network's outputs; normalised by the statistics of the batch, or by the moving ones."""
    a = inputs @ w["hidden/kernel"].reshape(9, 5) + w["hidden/bias"]
    mean, variance = w["hidden_norm/moving_mean"], w["hidden_norm/moving_variance"]
    if of_batch:
        mean, variance = a.mean(axis=0), a.var(axis=0)
    a = w["hidden_norm/gamma"] * (a - mean) / np.sqrt(variance + 1e-5) + w["hidden_norm/beta"]
    return np.maximum(a, 0) @ w["output/kernel"] + w["output/bias"]


def cross_entropy(w, batch, temperature, of_batch):
    logits = logits_of(w, batch.images.reshape(12, 9) / 255, of_batch)
    return mean_loss(logits / temperature, batch.labels)


def differences(function, w, step=1e-5):
    """The gradient of a function over both kernels, by central differences."""
    found = {}
    for name in ("hidden/kernel", "output/kernel"):
        found[name] = np.zeros(w[name].shape)
        for at in np.ndindex(w[name].shape):
            for sign in (1, -1):
                moved = {**w, name: w[name].copy()}
                moved[name][at] += sign * step
                found[name][at] += sign * function(moved) / (2 * step)
    return found


def expected_scores(criterion, batch):
    """SNIP and SynFlow with moving statistics, GraSP with the batch's and at temperature 200."""
    w = SMALL
    if criterion == "snip":
        g = differences(lambda at: cross_entropy(at, batch, 1, False), w)
        return {name: np.abs(w[name] * g[name]) for name in g}
    if criterion == "synflow":
        w = {name: np.abs(value) for name, value in SMALL.items()}
        g = differences(lambda at: logits_of(at, np.ones((1, 9)), False).sum(), w)
        return {name: w[name] * g[name] for name in g}

    def gradient(at):
        return differences(lambda v: cross_entropy(v, batch, 200, True), at)

    g = gradient(w)
    step = 1e-3 / np.sqrt(sum(np.sum(v**2) for v in g.values()))
    moved = ({**w, **{n: w[n] + by * step * g[n] for n in g}} for by in (1, -1))
    ahead, behind = map(gradient, moved)
    return {name: w[name] * (ahead[name] - behind[name]) / (2 * step) for name in g}


def seen(of, weights, batch=None):
    """A network as criteria see it."""
    names = tuple(name for name in weights if name.endswith("/kernel"))
    return criteria.PrunedNetwork(of, weights, weights, names, batch, 0)


@pytest.mark.parametrize("criterion", AT_INITIALISATION)
def test_scores_are_those_of_the_published_definition_in_float64(criterion, batch):
    weights = {name: value.astype(np.float32) for name, value in SMALL.items()}
    where = network("test_criteria:small", SHAPE, CLASSES)
    found = criteria.scores(criterion, seen(where, weights, batch))
    for name, expected in expected_scores(criterion, batch).items():
        assert np.abs(found[name] - expected).max() < 1e-4 * np.abs(expected).max(), name


def test_a_criterion_may_see_the_gradient_at_the_weights_and_at_the_initial_ones(batch):
    weights, initial = (models.initialise(LENET, "test", seed)[0] for seed in (0, 1))
    both = criteria.PrunedNetwork(LENET, weights, initial, tuple(KERNELS), batch, 0)
    for at, where in ((weights, {}), (initial, {"initial": True})):
        expected = seen(LENET, at, batch).gradients(criteria.loss_gradient)
        found = both.gradients(criteria.loss_gradient, **where)
        assert all(np.array_equal(found[name], expected[name]) for name in KERNELS)


def test_grasp_refuses_a_network_whose_second_derivatives_tensorflow_gets_wrong(batch):
    where = network("test_criteria:normalised_dense", SHAPE, CLASSES)
    weights, _ = models.initialise(where, "test", 0)
    with pytest.raises(LotteryError, match=r"prune\.criterion: grasp cannot score .* with norm:"):
        criteria.scores("grasp", seen(where, weights, batch))


@pytest.mark.parametrize(
    (
        "architecture",
        "scale",
    ),  # tanh of a thousand is 1, whatever the weights; of initial ones less
    [("normalised_layer", 1), ("saturated", 1000), ("saturated", 1)],
)
def test_synflow_refuses_a_network_that_nothing_flows_through_or_less_and_less(architecture, scale):
    where = network(f"test_criteria:{architecture}", SHAPE, CLASSES)
    weights, _ = models.initialise(where, "test", 0)
    weights = weights | {"hidden/kernel": scale * weights["hidden/kernel"]}
    message = r"prune\.criterion: synflow cannot score hidden/kernel: "
    with pytest.raises(LotteryError, match=message):
        criteria.scores("synflow", seen(where, weights))


def test_synflow_scores_a_network_of_which_a_layer_has_collapsed(weights):
    left = weights | {"dense1/kernel": np.zeros_like(weights["dense1/kernel"])}
    scores = criteria.scores("synflow", seen(LENET, left))
    assert not any(score.any() for score in scores.values())


@pytest.fixture(scope="module")
def weights():
    return models.initialise(LENET, "test", 0)[0]


def test_synflow_is_conserved_from_layer_to_layer():
    """Tanaka et al. 2020, theorem 1: with biases zero the scores of every layer sum to the flow R."""
    where = network("conv2", (4, 4, 3), CLASSES, initializer="glorot_uniform")
    (weights, _), model = models.initialise(where, "test", 1), models.build(where)
    scores = criteria.scores("synflow", seen(where, weights))
    for name, variable in models.variables(model).items():
        variable.assign(np.abs(weights[name]))
    flow = float(model(np.ones((1, 4, 4, 3), np.float32)).numpy().sum())
    assert flow > 0
    for name in scores:
        assert scores[name].min() >= 0
        assert scores[name].sum() == pytest.approx(flow, rel=1e-4)


def test_second_derivatives_exist_for_convolutions_pooling_and_batch_normalisation():
    where = network("vgg16", (16, 16, 3), CLASSES, initializer="glorot_uniform", width=1 / 16)
    weights, _ = models.initialise(where, "test", 2)
    images = np.random.default_rng(3).integers(0, 256, (8, 16, 16, 3), np.uint8)
    part = Part(images, np.arange(8, dtype=np.int32) % 4)
    found = seen(where, weights, part).gradients(criteria.hessian_gradient)
    assert all(np.count_nonzero(g) > 0 and np.isfinite(g).all() for g in found.values())


def test_the_batch_holds_the_same_number_of_images_of_each_class_and_depends_on_the_seed():
    labels = np.repeat(np.arange(4, dtype=np.int32), [30, 11, 10, 3])
    part = Part(np.arange(54, dtype=np.uint8).reshape(54, 1, 1, 1), labels)
    batch = criteria.batch(part, 4, 0)
    assert np.bincount(batch.labels).tolist() == [10, 10, 10, 3]
    assert len(np.unique(batch.images)) == 33
    assert np.array_equal(labels[batch.images.ravel()], batch.labels)
    assert np.array_equal(criteria.batch(part, 4, 0).images, batch.images)
    assert not np.array_equal(criteria.batch(part, 4, 1).images, batch.images)


# From scores to masks


def test_one_threshold_for_all_layers_counts_equal_scores_from_the_first():
    scores = dict(zip("abc", arrays([5, 1, 3], [3, 9, 0], [-1, -2, 4]), strict=True))
    mask = Mask.full(dict.fromkeys("abc", (3,)))
    for total, kept in [
        (4, [2, 1, 1]),  # 9, 5, 4 and the first of the two 3s
        (5, [2, 2, 1]),
        (1, [0, 1, 0]),
        (9, [3, 3, 3]),
    ]:
        assert list(global_counts(scores, mask, total).values()) == kept
    some = {"a": np.array([False, True, True]), "b": np.array([True, False, True])}
    survivors = Mask(mask.layers | some)
    assert list(global_counts(scores, survivors, 3).values()) == [1, 1, 1]
    for total in (0, 8):
        with pytest.raises(ValueError, match=f"asked to keep {total} of 7 weights"):
            global_counts(scores, survivors, total)


def test_the_highest_scores_survive_and_of_equals_the_first():
    (scores,) = arrays([[2, -1, 2], [0, 2, 5]])
    mask = Mask({"a": np.array([[True, True, True], [True, True, False]])})
    for count, kept in [(0, []), (2, [0, 2]), (4, [0, 2, 3, 4])]:
        found = highest({"a": scores}, mask, {"a": count}).layers["a"]
        assert np.flatnonzero(found).tolist() == kept


@pytest.fixture(scope="module")
def make(weights, batch):
    """Prunes LeNet's weights by a criterion: from a mask, by default the full one, to a count."""
    initial, _ = models.initialise(LENET, "test", 7)
    full = Mask.full({name: weights[name].shape for name in KERNELS})

    def made(criterion, keep, mask=full, **options):
        given = {"network": LENET, "batch": batch, "seed": 0, "whole": (), "scoring_rounds": 1}
        given |= {"criterion": criterion, "initial": initial, **options}
        return pruned(mask, mask.apply(weights), keep, **given)

    made.full = full
    return made


def alike(one, other):
    return all(np.array_equal(one.layers[name], other.layers[name]) for name in KERNELS)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_makes_nested_masks_of_exact_counts_by_layer_and_globally(criterion, make):
    half = {name: size // 2 for name, size in make.full.sizes.items()}
    sixth = {name: count // 3 for name, count in half.items()}
    first = make(criterion, half)
    second = make(criterion, sixth, first)
    assert (first.counts, second.counts) == (half, sixth)
    assert second.within(first)
    overall = make(criterion, 5000)
    assert sum(overall.counts.values()) == 5000
    if criterion != "random":  # which lets each layer lose the same share, give or take
        assert len({round(overall.counts[n] / overall.sizes[n], 1) for n in KERNELS}) > 1
    assert alike(make(criterion, 5000), overall)


def test_single_weights_go_by_the_magnitude_mask_of_tensorflow_model_optimization(weights, make):
    half = {name: size // 2 for name, size in make.full.sizes.items()}
    found = make("magnitude", half, pattern="weight")
    assert alike(found, magnitude_mask(weights, make.full, half, LENET))
    assert alike(found, make("magnitude", half))


def test_random_pruning_depends_on_the_seed_and_keeps_each_layer_in_proportion(make):
    keep = make.full.sizes["dense2/kernel"] // 2
    one, other = (make("random", keep, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.layers["dense2/kernel"], other.layers["dense2/kernel"])
    scores = criteria.scores("random", seen(LENET, make.full.layers))  # of each layer its own
    assert not np.isin(scores["dense2/kernel"], scores["dense1/kernel"]).any()
    for name, size in one.sizes.items():
        share = one.weights_remaining
        spread = 4 * (share * (1 - share) * size) ** 0.5
        assert one.counts[name] == pytest.approx(share * size, abs=spread)


@pytest.mark.parametrize("keep", [1000, dict(zip(KERNELS, (500, 400, 100), strict=True))])
def test_rounds_of_scoring_go_down_exponentially_and_score_what_is_left(keep, make):
    found, mask = make("synflow", keep, scoring_rounds=3), make.full
    for share in (1 / 3, 2 / 3, 1):
        if isinstance(keep, int):
            step = round(sum(mask.sizes.values()) ** (1 - share) * keep**share)
        else:
            step = {n: round(mask.sizes[n] ** (1 - share) * k**share) for n, k in keep.items()}
        mask = make("synflow", step, mask)
    assert alike(mask, found)
    assert keep in (sum(found.counts.values()), found.counts)
    assert not alike(make("synflow", keep), found)


def test_a_layer_left_whole_keeps_all_and_one_threshold_serves_the_others(weights, make):
    for criterion in ("magnitude", "grasp"):
        mask = make(criterion, 400 + 2000, whole=["output/kernel"])
        assert mask.layers["output/kernel"].all()
        kept, gone = (
            np.concatenate([np.abs(weights[n][mask.layers[n] == side]) for n in KERNELS[:2]])
            for side in (True, False)
        )
        assert len(kept) == 2000
        assert criterion == "grasp" or kept.min() >= gone.max()
    half_way = round(((sum(mask.sizes.values()) - 400) * 2000) ** 0.5)  # of the others
    found = make("synflow", 400 + 2000, whole=["output/kernel"], scoring_rounds=2)
    expected = make("synflow", 400 + half_way, whole=["output/kernel"])
    assert alike(make("synflow", 400 + 2000, expected, whole=["output/kernel"]), found)
