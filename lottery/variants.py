"""What is trained at a pruning round: the ticket, and the controls it is compared with.

A variant is one short function: from the ticket's mask and the dense network's artifacts to the weights
and the mask that training starts from.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lottery.masks import Mask, random_mask
from lottery.params import Model
from lottery.runs import Initialise
from lottery.streams import stream

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Ticket:
    """A ticket of one seed and round, with what its controls are made of."""

    seed: int
    round: int
    mask: Mask
    rewound: Weights  # the dense network's weights at rewind_iteration
    rewind_iteration: int
    model: Model
    image_shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True)
class Start:
    """Where a run begins; weights are those under the mask."""

    weights: Weights
    mask: Mask
    iteration: int


Making = Generator[Initialise, Any, Start]


def ticket(t: Ticket) -> Making:
    """The winning-ticket candidate: the mask, and the initial (or rewound) weights it keeps."""
    return Start(t.mask.apply(t.rewound), t.mask, t.rewind_iteration)
    yield


def random_reinit(t: Ticket) -> Making:
    """The same mask with fresh initial weights, trained from the start (Frankle & Carbin 2019, section 2)."""
    fresh, _ = yield Initialise(
        f"seed {t.seed}, round {t.round}: fresh weights",
        t.model,
        t.image_shape,
        t.classes,
        "re-initialisation",
        (t.seed, t.round),
    )
    return Start(t.mask.apply(fresh), t.mask, 0)


def random_mask_control(t: Ticket) -> Making:
    """The initial (or rewound) weights under a random mask with the ticket's count in each layer."""
    mask = random_mask(t.mask, stream("random mask", t.seed, t.round))
    return Start(mask.apply(t.rewound), mask, t.rewind_iteration)
    yield


VARIANTS: dict[str, Callable[[Ticket], Making]] = {
    "ticket": ticket,
    "random_reinit": random_reinit,
    "random_mask": random_mask_control,
}
