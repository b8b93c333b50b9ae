"""Pruning criteria: a score for each weight; of survivors the highest scores survive again.

Each is one short function from a ``Layer`` to the scores of its weights. The first four need no
gradients. The last three prune at initialisation, where the weights are the initial ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from lottery import parts
from lottery.datasets.split import Part, scaled
from lottery.errors import LotteryError
from lottery.masks import Weights
from lottery.params import Network
from lottery.streams import stream

Gradient = Callable[[Any, dict[str, Any], Any, Any], dict[str, Any]]
"""From a Keras model, some of its variables by name, images (float32, as the model takes them) and
labels to a tensor for each of the variables."""

IMAGES_PER_CLASS = 10  # in the batch that criteria see (Wang et al. 2020, section 5.1)
TEMPERATURE = 200.0  # by which grasp divides the logits, as its authors' code does


def loss_gradient(
    model: Any,
    kernels: dict[str, Any],
    images: Any,
    labels: Any,
    *,
    temperature: float = 1.0,
    training: bool = False,
) -> Any:
    """``∂L/∂w``: L is the mean cross-entropy of the batch.

    Batch normalisation uses its moving statistics, as in the code of SNIP's authors, or with
    ``training`` those of the batch. Nothing is dropped out.
    """
    import tensorflow as tf

    with tf.GradientTape() as tape:
        logits = model(images, training=training) / temperature
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    return tape.gradient(loss, kernels)


def hessian_gradient(model: Any, kernels: dict[str, Any], images: Any, labels: Any) -> Any:
    """``Hg``: the Hessian of L times its gradient, both over the prunable weights.

    As in the code of GraSP's authors, logits are divided by TEMPERATURE and batch normalisation
    uses the statistics of the batch. Theirs are of each half of it, ours of the whole.

    Raises LotteryError for a network with batch normalisation of other than images: that one is not
    fused, and ``tf.nn.moments`` stops gradients, so that its second derivative would be wrong.
    """
    import tensorflow as tf

    unfused = [layer.name for layer in model.layers if not getattr(layer, "fused", True)]
    if unfused:
        raise LotteryError(
            f"params.yaml: prune.criterion: grasp cannot score a network with {unfused[0]}: "
            "TensorFlow's second derivative of batch normalisation is right for images alone, "
            "[n, height, width, channels]; take another criterion, or normalise before flattening"
        )
    with tf.GradientTape() as outer:
        of_batch = partial(loss_gradient, temperature=TEMPERATURE, training=True)
        gradient = of_batch(model, kernels, images, labels)
        product = tf.add_n([tf.reduce_sum(tf.stop_gradient(g) * g) for g in gradient.values()])
    return outer.gradient(product, kernels)


def flow_gradient(model: Any, kernels: dict[str, Any], images: Any, labels: Any) -> Any:
    """``∂R/∂|w|``; needs no images. The model's variables become their absolute values.

    Raises LotteryError where R does not flow through the layers: the score is defined for networks
    whose outputs grow in proportion to each input (Tanaka et al. 2020, theorem 1), not for tanh or
    LayerNormalization.
    """
    import tensorflow as tf

    for variable in model.weights:
        variable.assign(tf.abs(variable))

    def flow(size: float) -> Any:
        """R, for inputs of that size."""
        return tf.reduce_sum(model(tf.fill((1, *model.input_shape[1:]), size), training=False))

    with tf.GradientTape() as tape:
        of_ones = flow(1.0)
    gradient = tape.gradient(of_ones, kernels)
    # what batch normalisation takes away, as its authors' code has it, bends R too
    moved = any(np.any(v.numpy()) for v in model.weights if "moving_mean" in v.name)
    straight = moved or np.isclose(flow(2.0) - of_ones, of_ones - flow(0.0), rtol=1e-3)
    whole = all(np.all(variable.numpy() != 0) for variable in kernels.values())
    for name in kernels:
        value = np.asarray(gradient[name])
        flows = straight and value.min() >= 0 and value.max() < np.inf
        if not flows or (whole and not value.any()):
            raise LotteryError(
                f"params.yaml: prune.criterion: synflow cannot score {name}: it takes layers whose "
                "outputs grow in proportion to each input, as with ReLU, pooling and "
                "BatchNormalization; take another criterion, or other layers"
            )
    return gradient


@cache
def _built(network: Network) -> Any:
    from lottery.training.models import build

    return build(network)


@dataclass(frozen=True, eq=False)
class PrunedNetwork:
    """A network as criteria see it when it is pruned.

    Args:
        weights: every variable by name (``dense1/kernel``), float32, 0 where it is pruned.
        initial: the initial (or rewound) weights.
        names: the prunable layers.
        batch: a few training images of each class; None where the criterion needs none.
    """

    network: Network
    weights: Weights
    initial: Weights
    names: tuple[str, ...]
    batch: Part | None
    seed: int
    _known: dict[Any, Weights] = field(default_factory=dict, repr=False)

    def keras(self, *, initial: bool = False) -> Any:
        """The float32 Keras model; holds the weights, or the initial ones, until the next call."""
        from lottery.training.models import assign

        model = _built(self.network)
        assign(model, self.initial if initial else self.weights)
        return model

    def gradients(self, of: Gradient, *, initial: bool = False) -> Weights:
        """What ``of`` gives for each prunable layer; computed once.

        ``of``: loss_gradient, hessian_gradient, flow_gradient or one's own. ``initial``: at the
        initial weights.
        """
        from lottery.training.models import variables

        if (of, initial) not in self._known:
            model = self.keras(initial=initial)
            kernels = {name: variables(model)[name] for name in self.names}
            images, labels = (scaled(self.batch[0]), self.batch[1]) if self.batch else (None, None)
            computed = of(model, kernels, images, labels)
            self._known[of, initial] = {name: np.asarray(g) for name, g in computed.items()}
        return self._known[of, initial]


class Layer(NamedTuple):
    """A prunable layer as its criterion sees it; arrays are float32 of one shape, read-only."""

    name: str
    network: PrunedNetwork

    @property
    def w(self) -> np.ndarray:
        """Its weights as they are when it is pruned, 0 where an earlier round has pruned."""
        return _read_only(self.network.weights[self.name])

    @property
    def w0(self) -> np.ndarray:
        """Its initial (or rewound) weights."""
        return _read_only(self.network.initial[self.name])

    def gradient(self, of: Gradient = loss_gradient, *, initial: bool = False) -> np.ndarray:
        """``∂L/∂w`` of the batch, or what another function gives, at w or at w0."""
        return _read_only(self.network.gradients(of, initial=initial)[self.name])

    def stream(self, purpose: str) -> np.random.Generator:
        """Random numbers, a function of purpose, layer and seed: the same in each round."""
        return stream(f"{purpose} of {self.name}", self.network.seed)


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


Score = Callable[[Layer], np.ndarray]


def magnitude(layer: Layer) -> np.ndarray:
    """``|w|`` (Han et al. 2015; ``large final`` of Zhou et al. 2019)."""
    return np.abs(layer.w)


def magnitude_increase(layer: Layer) -> np.ndarray:
    """``|w| − |w0|`` (Zhou et al. 2019, section 2)."""
    return np.abs(layer.w) - np.abs(layer.w0)


def movement(layer: Layer) -> np.ndarray:
    """``|w − w0|``, the ``movement`` of Zhou et al. 2019, section 2.

    Not movement pruning (Sanh et al. 2020), whose score sums ``−w · ∂L/∂w`` over training.
    """
    return np.abs(layer.w - layer.w0)


def random(layer: Layer) -> np.ndarray:
    """Noise, float64 in [0, 1): the same in each round, so that masks are nested."""
    return layer.stream("random pruning").random(layer.w.shape)


def snip(layer: Layer) -> np.ndarray:
    """``|w ⊙ ∂L/∂w|`` (Lee et al. 2019, section 4.1)."""
    return np.abs(layer.w * layer.gradient())


def grasp(layer: Layer) -> np.ndarray:
    """``w ⊙ Hg``: removing the lowest reduces the gradient's norm least.

    Source: Wang et al. 2020, section 4.2. Their code first draws dense layers anew; scored here are
    the weights that are trained.
    """
    return layer.w * layer.gradient(hessian_gradient)


def synflow(layer: Layer) -> np.ndarray:
    """``|w| ⊙ ∂R/∂|w|``, R the network's summed output for ones with all parameters positive.

    Source: Tanaka et al. 2020, section 6.
    """
    return np.abs(layer.w) * layer.gradient(flow_gradient)


WITH_IMAGES = ("snip", "grasp")
"""Those of this project that see a batch; one's own do too."""


def scores(criterion: str, network: PrunedNetwork) -> Weights:
    """The scores of each prunable layer by a criterion, perhaps one's own ``module:function``.

    Raises LotteryError where one's own gives another shape than the weights', or NaN.
    """
    score = parts.find(globals(), criterion)
    given = {name: score(Layer(name, network)) for name in network.names}
    arrays = {name: np.asarray(value) for name, value in given.items()}
    for name, value in arrays.items() if parts.is_own(criterion) else ():
        shape, got = list(network.weights[name].shape), f"{value.dtype} {list(value.shape)}"
        numbers = list(value.shape) == shape and value.dtype.kind in "iuf"
        if numbers and (undefined := np.isnan(value).sum()):
            numbers, got = False, f"{got}, {undefined:,} of them NaN"
        if np.ma.is_masked(given[name]):
            numbers, got = False, f"{got}, some of them masked"
        if not numbers:
            why = f"scores {name} with {got}; accepted: a number for each weight, {shape}"
            raise parts.mistake(criterion, why)
        arrays[name] = value.astype(np.float64)  # of uint8 or the least int8 there is no negative
    return arrays


def batch(part: Part, classes: int, seed: int) -> Part:
    """IMAGES_PER_CLASS images of each class, or all where there are fewer, chosen by the seed."""
    shuffled = stream("images of pruning at initialisation", seed).permutation(len(part.labels))
    labels = part.labels[shuffled]
    of_class = (shuffled[labels == label] for label in range(classes))
    rows = np.concatenate([rows[:IMAGES_PER_CLASS] for rows in of_class])
    drawn = Part(np.asarray(part.images[rows]), np.asarray(part.labels[rows]))
    for array in drawn:
        array.flags.writeable = False  # each layer's scores are of the same images
    return drawn
