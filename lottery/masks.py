"""Masks: which weights survive. Counted, nested, bit-packed; and the random controls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]
"""Every variable of a network by name (``conv1/kernel``), float32, in the order of the layers."""


@dataclass(frozen=True, eq=False)
class Mask:
    """For each prunable weight of a network, whether it survives.

    ``layers`` maps a variable's name to a bool array of its shape. Anything but bool is refused
    with a TypeError; the arrays are made read-only.
    """

    layers: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        for name, keep in self.layers.items():
            if keep.dtype != np.bool_:
                raise TypeError(f"the mask of {name} holds {keep.dtype}, expected bool")
            keep.flags.writeable = False

    @classmethod
    def full(cls, shapes: Mapping[str, tuple[int, ...]]) -> "Mask":
        """The mask of a dense network."""
        return cls({name: np.ones(shape, np.bool_) for name, shape in shapes.items()})

    @classmethod
    def unpack(
        cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
    ) -> "Mask":
        """From packed bits; raises ValueError where their number does not fit the shape."""
        layers = {}
        for name, shape in shapes.items():
            size = math.prod(shape)
            packed = bits[name]
            if packed.dtype != np.uint8 or packed.shape != ((size + 7) // 8,):
                raise ValueError(
                    f"the packed mask of {name} is {packed.dtype} {packed.shape}, "
                    f"expected uint8 {((size + 7) // 8,)} for the shape {shape}"
                )
            unpacked = np.unpackbits(packed)
            if unpacked[size:].any():
                raise ValueError(
                    f"the packed mask of {name} has bits set beyond its {size} weights"
                )
            layers[name] = unpacked[:size].astype(np.bool_).reshape(shape)
        return cls(layers)

    def pack(self) -> dict[str, np.ndarray]:
        """One bit a weight, in C order, the first weight in the highest bit: uint8
        ``[ceil(n / 8)]``."""
        return {name: np.packbits(keep) for name, keep in self.layers.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Surviving weights of each layer."""
        return {name: int(np.count_nonzero(keep)) for name, keep in self.layers.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each layer's kernel."""
        return {name: keep.shape for name, keep in self.layers.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Prunable weights of each layer."""
        return {name: keep.size for name, keep in self.layers.items()}

    @property
    def weights_remaining(self) -> float:
        """Surviving prunable weights over all prunable weights, in (0, 1]."""
        return sum(self.counts.values()) / sum(self.sizes.values())

    def within(self, other: "Mask") -> bool:
        """Whether every weight that survives here survives in ``other`` too."""
        return self.layers.keys() == other.layers.keys() and all(
            not np.any(keep & ~other.layers[name]) for name, keep in self.layers.items()
        )

    def apply(self, weights: Mapping[str, np.ndarray]) -> Weights:
        """The weights with pruned ones set to (positive) zero; others are unchanged, bit
        for bit."""
        return {
            name: np.where(self.layers[name], value, np.zeros((), value.dtype))
            if name in self.layers
            else value
            for name, value in weights.items()
        }


def surviving_count(size: int, rate: float, round_: int) -> int:
    """Weights of a layer that survive ``round_`` rounds at a rate:
    ``round(size · (1 − rate)^round)``."""
    return round(size * (1 - rate) ** round_)


def erk_counts(shapes: Mapping[str, tuple[int, ...]], total: int) -> dict[str, int]:
    """How many of about ``total`` weights each layer keeps by the Erdős–Rényi-Kernel rule.

    A density in proportion to the sum of a kernel's sides over their product, at most 1; what a
    full layer cannot take goes to the others (Evci et al. 2020, section 3, (1)). Each layer's count
    is rounded by itself, so that it never rises as ``total`` falls.
    """
    full: set[str] = set()
    while True:
        left = total - sum(math.prod(shapes[name]) for name in full)
        sides = {name: sum(shape) for name, shape in shapes.items() if name not in full}
        counts = {name: left * side / sum(sides.values()) for name, side in sides.items()}
        above = {name for name, count in counts.items() if count > math.prod(shapes[name])}
        if not above:
            return {n: round(counts.get(n, math.prod(shape))) for n, shape in shapes.items()}
        full |= above


def random_mask(mask: Mask, generator: np.random.Generator) -> Mask:
    """A uniformly random mask with the same count in each layer."""
    counts, shapes = mask.counts, mask.shapes
    return Mask({name: random_layer(shapes[name], counts[name], generator) for name in shapes})


def random_layer(shape: tuple[int, ...], count: int, generator: np.random.Generator) -> np.ndarray:
    """The uniformly random mask of one layer, bool."""
    chosen = np.zeros(math.prod(shape), np.bool_)
    chosen[generator.permutation(chosen.size)[:count]] = True
    return chosen.reshape(shape)


def overlap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Jaccard index of two masks of a layer, and the one expected of random masks with the same
    counts.

    The expected index is the ratio of expected sizes, ``E|A ∩ B| / E|A ∪ B|``. Both are 1 where
    nothing survives in either.
    """
    a, b = int(np.count_nonzero(one)), int(np.count_nonzero(other))
    both = int(np.count_nonzero(one & other))
    by_chance = a * b / one.size
    if a + b == 0:
        return 1.0, 1.0
    return both / (a + b - both), by_chance / (a + b - by_chance)
