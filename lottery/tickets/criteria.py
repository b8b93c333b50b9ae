"""Pruning criteria: a score for each weight; of survivors the highest scores survive again.

Each is one short function of a layer's weights ``w`` as they are when it is pruned, its initial
(or rewound) weights ``w0``, and gradients ``g``, all float32 of one shape. The first four need no
gradients. The last three prune at initialisation, where ``w`` is ``w0``: their gradients are those
of ``GRADIENTS``.
"""

from functools import cache
from typing import Any

import numpy as np

from lottery import parts
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Weights
from lottery.params import Network
from lottery.streams import stream

IMAGES_PER_CLASS = 10  # in the batch that snip and grasp see (Wang et al. 2020, section 5.1)
TEMPERATURE = 200.0  # by which grasp divides the logits, as its authors' code does


def magnitude(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|w|`` (Han et al. 2015; ``large final`` of Zhou et al. 2019)."""
    return np.abs(w)


def magnitude_increase(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|w| − |w0|`` (Zhou et al. 2019, section 2)."""
    return np.abs(w) - np.abs(w0)


def movement(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|w − w0|``, the ``movement`` of Zhou et al. 2019, section 2.

    Not movement pruning (Sanh et al. 2020), whose score sums ``−w · ∂L/∂w`` over training.
    """
    return np.abs(w - w0)


def random(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Noise: ``g`` is uniform in [0, 1), the same in each round, so that masks are nested."""
    return g


def snip(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|w ⊙ ∂L/∂w|`` (Lee et al. 2019, section 4.1)."""
    return np.abs(w * g)


def grasp(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``w ⊙ Hg``: removing the lowest reduces the gradient's norm least.

    Source: Wang et al. 2020, section 4.2.
    """
    return w * g


def synflow(w: np.ndarray, w0: np.ndarray, g: np.ndarray) -> np.ndarray:
    """``|w| ⊙ ∂R/∂|w|``, R the network's summed output for ones with all parameters positive.

    Source: Tanaka et al. 2020, section 6.
    """
    return np.abs(w) * g


def scores(
    criterion: str,
    weights: Weights,
    initial: Weights,
    names: list[str],
    *,
    network: Network,
    seed: int,
    batch: Part | None = None,
) -> Weights:
    """The scores of the layers ``names`` by a criterion, perhaps one's own.

    Args:
        weights: of the whole network, as they are when it is pruned.
        initial: its initial (or rewound) weights.
        seed: of the noise that ``random`` ranks by, float64 in [0, 1), with the layer's name.
        batch: what snip and grasp see.
    """
    if criterion in GRADIENTS:
        factors = gradients(criterion, weights, names, network, batch)
    elif criterion == "random":
        factors = {
            name: stream(f"random pruning of {name}", seed).random(weights[name].shape)
            for name in names
        }
    else:
        factors = dict.fromkeys(names, np.zeros((), np.float32))
    score = parts.find(globals(), criterion)
    return {name: score(weights[name], initial[name], factors[name]) for name in names}


def batch(part: Part, classes: int, seed: int) -> Part:
    """IMAGES_PER_CLASS images of each class, or all where there are fewer, chosen by the seed."""
    shuffled = stream("images of pruning at initialisation", seed).permutation(len(part.labels))
    labels = part.labels[shuffled]
    rows = np.concatenate(
        [shuffled[labels == label][:IMAGES_PER_CLASS] for label in range(classes)]
    )
    return Part(np.asarray(part.images[rows]), np.asarray(part.labels[rows]))


@cache
def _built(network: Network) -> Any:
    from lottery.training.models import build

    return build(network)


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
        logits = model(tf.cast(images, tf.float32) / 255.0, training=training) / temperature
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
        gradient = loss_gradient(
            model, kernels, images, labels, temperature=TEMPERATURE, training=True
        )
        product = tf.add_n([tf.reduce_sum(tf.stop_gradient(g) * g) for g in gradient.values()])
    return outer.gradient(product, kernels)


def flow_gradient(model: Any, kernels: dict[str, Any], images: Any, labels: Any) -> Any:
    """``∂R/∂|w|``; needs no images. The network must hold absolute values."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        flow = tf.reduce_sum(model(tf.ones((1, *model.input_shape[1:])), training=False))
    return tape.gradient(flow, kernels)


GRADIENTS = {"snip": loss_gradient, "grasp": hessian_gradient, "synflow": flow_gradient}
"""Of the criteria that prune at initialisation: what multiplies the weights."""


def gradients(
    criterion: str, weights: Weights, names: list[str], network: Network, batch: Part | None
) -> Weights:
    """What a criterion of GRADIENTS multiplies the weights by, at ``weights``; computed in float32.

    Args:
        names: the prunable layers.
        batch: what snip and grasp see; synflow sees none.
    """
    from lottery.training.models import assign, variables

    if criterion == "synflow":
        weights = {name: np.abs(value) for name, value in weights.items()}
    model = _built(network)
    assign(model, weights)
    kernels = {name: variables(model)[name] for name in names}
    images, labels = batch or (None, None)
    values = GRADIENTS[criterion](model, kernels, images, labels)
    return {name: np.asarray(value) for name, value in values.items()}
