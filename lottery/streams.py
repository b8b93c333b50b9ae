"""Independent random streams, each a function of (purpose, seed, …) and of nothing else.

Initialisation, data order, random mask and re-initialisation each draw from a stream of their own,
so that changing one leaves the others as they were.
"""

import hashlib

import numpy as np


def stream_seed(purpose: str, *key: int) -> int:
    """A 64-bit seed that depends on the purpose and on every number of the key."""
    text = ":".join([purpose, *map(str, key)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def stream(purpose: str, *key: int) -> np.random.Generator:
    """The generator of one purpose, e.g. ``stream("data order", seed, epoch)``."""
    return np.random.Generator(np.random.Philox(stream_seed(purpose, *key)))
