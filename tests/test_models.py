"""Architectures and initialisers against the paper's counts and the definitions."""

import numpy as np
import pytest
import tf_keras
from clones import network
from networks import models

from lottery.errors import LotteryError
from lottery.params import ARCHITECTURES, SMALLEST_IMAGE
from lottery.tickets.search import write_layers

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)


def initial(name, shape, *key, purpose="initialisation", **model):
    """Fresh weights, by default of seed 0."""
    return models.initialise(network(name, shape, **model), purpose, *(key or (0,)))[0]


@pytest.mark.parametrize(
    ("name", "weights"),  # those of Frankle & Carbin 2019: test_experiments.py
    [
        # He et al. 2016, section 4.2: 0.27 million parameters; 2,560 of them in the two shortcuts
        ("resnet20", 270_896),
        # the 13 convolutions of Simonyan & Zisserman 2015, table 1, column D, and one dense layer
        ("vgg16", 14_715_584),
    ],
)
def test_prunable_weights_are_as_many_as_in_the_paper(name, weights):
    assert models.prunable_weights(network(name, CIFAR)) == weights


def test_batch_normalisation_is_never_pruned_and_starts_as_the_identity_or_with_drawn_scales():
    resnet = network("resnet20", CIFAR, initializer="he_normal")
    ones, kinds = models.initialise(resnet, "initialisation", 0)
    assert [kind for kind in kinds.values() if kind != "conv"] == ["output"]
    assert len(kinds) == 20 + 2
    norms = {name: value for name, value in ones.items() if "_norm/" in name}
    assert len(norms) == 4 * 21
    assert not norms.keys() & kinds.keys()
    for name, value in norms.items():
        assert (value == (1 if name.endswith(("gamma", "moving_variance")) else 0)).all()
    how = {"initializer": "he_normal", "batch_norm_scale": "uniform"}  # as open_lth does
    drawn, other = (initial("resnet20", CIFAR, seed, **how) for seed in (0, 1))
    scales = {name for name in ones if name.endswith("/gamma")}
    assert all(np.array_equal(ones[n], drawn[n]) for n in ones.keys() - scales)
    assert not any(np.array_equal(drawn[n], other[n]) for n in scales)
    values = np.concatenate([drawn[n] for n in sorted(scales)])  # of 688 channels
    assert 0 <= values.min() < 0.01 < 0.99 < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * len(values)))
    assert len(np.unique(values)) == len(values)


def test_convolutions_of_stride_2_see_each_second_pixel_from_the_first_with_a_border_of_zeros():
    """As with ``padding=1`` in PyTorch: an output is centred on the pixels 0, 2, 4, … of its input."""
    model = models.build(network("resnet20", (8, 8, 3)))
    layer = model.get_layer("block10_conv1")
    padding = model.get_layer("block10_conv1_padding")
    part = tf_keras.Model(padding.input, layer.output)
    image = np.random.default_rng(0).random((1, 8, 8, 16), np.float32)
    kernel = layer.get_weights()[0].astype(np.float64)
    found = part(image).numpy()[0]
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    assert found.shape == (4, 4, 32)
    for y, x in np.ndindex(4, 4):
        window = padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        expected = np.tensordot(window, kernel, axes=3)
        assert np.allclose(found[y, x], expected, atol=1e-5)


def test_kernels_are_prunable_and_only_the_last_dense_layer_is_output():
    assert models.kinds(models.build(network("conv2", CIFAR))) == {
        "conv1/kernel": "conv",
        "conv2/kernel": "conv",
        "dense1/kernel": "dense",
        "dense2/kernel": "dense",
        "output/kernel": "output",
    }


def fits(name, side):
    try:
        built = models.build(network(name, (side, side, 1), width=1 / 16))
        return all(0 not in v.shape for v in built.variables)
    except ValueError:  # Keras refuses to pool less than 2 x 2 pixels
        return False


@pytest.mark.parametrize("name", [name for name, least in SMALLEST_IMAGE.items() if least])
def test_the_smallest_image_that_fits_is_the_one_documented(name):
    assert fits(name, SMALLEST_IMAGE[name])
    assert not fits(name, SMALLEST_IMAGE[name] - 1)


@pytest.mark.parametrize(
    ("initializer", "variance", "bound"),
    [  # of 784 inputs and 300 units; the normal ones are cut at two deviations and rescaled
        ("glorot_normal", 2 / (784 + 300), 2 / 0.8796),  # Glorot & Bengio 2010, equation 12
        ("glorot_uniform", 2 / (784 + 300), np.sqrt(3)),
        ("he_normal", 2 / 784, 2 / 0.8796),  # He et al. 2015, equation 10
    ],
)
def test_initial_kernels_have_the_variance_of_their_definition(initializer, variance, bound):
    weights = initial("lenet_300_100", MNIST, initializer=initializer)
    kernel = weights["dense1/kernel"]
    assert kernel.var() == pytest.approx(variance, rel=0.02)
    assert abs(kernel.mean()) < 4 * np.sqrt(variance / kernel.size)
    assert np.abs(kernel).max() <= bound * np.sqrt(variance) * 1.001
    assert not weights["dense1/bias"].any()


def test_initial_weights_are_a_function_of_purpose_and_seed_alone():
    first, again = (initial("lenet_300_100", MNIST, 3) for _ in range(2))
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    keys = [("initialisation", 4), ("re-initialisation", 3), ("initialisation", 3, 1)]
    for purpose, *key in keys:
        other = initial("lenet_300_100", MNIST, *key, purpose=purpose)
        assert not np.array_equal(first["dense1/kernel"], other["dense1/kernel"])


def test_bfloat16_computes_in_bfloat16_with_float32_variables_and_logits():
    model = models.build(network("conv2", CIFAR), "bfloat16")
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    assert all(v.dtype == "float32" for v in model.get_weights())
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_the_width_has_half_the_units_of_each_hidden_layer(name):
    whole, half = (models.build(network(name, CIFAR, width=width)) for width in (0.5, 0.25))
    units = [{n: v.shape[-1] for n, v in models.variables(m).items()} for m in (whole, half)]
    for kernel, kind in models.kinds(whole).items():
        assert units[1][kernel] == units[0][kernel] // (1 if kind == "output" else 2)


def test_a_narrowed_network_has_at_most_as_many_weights_and_the_next_width_more():
    narrow = models.narrowed(network("lenet_300_100", MNIST, width=2.0), 400_000)
    wider = narrow.model.model_copy(update={"width": narrow.model.width + 1 / models.WIDTHS})
    sizes = [models.prunable_weights(n) for n in (narrow, narrow._replace(model=wider))]
    assert 0.97 * 400_000 < sizes[0] <= 400_000 < sizes[1]
    assert 1 < narrow.model.width < 2
    itself = network("lenet_300_100", MNIST)
    assert models.narrowed(itself, models.prunable_weights(itself)).model.width < 1


def separable(images, classes):
    """An architecture with kernels that are not prunable, and without a width."""
    x = tf_keras.layers.DepthwiseConv2D(3, name="depthwise")(images)
    x = tf_keras.layers.SeparableConv2D(4, 3, name="separable")(x)
    x = tf_keras.layers.Flatten(name="flatten")(x)
    return tf_keras.layers.Dense(classes, name="output")(x)


def test_kernels_of_every_kind_are_drawn():
    weights, kinds = models.initialise(network("test_models:separable", MNIST), "test", 0)
    drawn = {name for name, value in weights.items() if np.any(value)}
    separable = {"separable/depthwise_kernel", "separable/pointwise_kernel"}
    assert drawn == {"depthwise/depthwise_kernel", *separable, "output/kernel"}
    assert list(kinds) == ["output/kernel"]


def test_what_cannot_be_narrowed_is_refused():
    assert models.prunable_weights(network("lenet_300_100", MNIST, width=1e-9)) == 784 + 1 + 10
    with pytest.raises(LotteryError, match="no lenet_300_100 has as few as 794 weights"):
        models.narrowed(network("lenet_300_100", MNIST), 794)
    why = r"retrain\.variants: small_dense: test_models:separable cannot be narrowed"
    with pytest.raises(LotteryError, match=why):
        models.narrowed(network("test_models:separable", MNIST), 100)


def test_a_convolution_applies_its_weights_at_each_place_of_its_output_a_dense_layer_once(tmp_path):
    write_layers(tmp_path / "layers.csv", network("conv4", CIFAR))
    lines = (tmp_path / "layers.csv").read_text().split()[1:]
    assert [int(line.split(",")[1]) for line in lines] == [1024, 1024, 256, 256, 1, 1, 1]
