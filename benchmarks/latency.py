"""What sparsity is worth on this CPU: Conv-4 dense, with zeros of each pattern, and without its dead units.

    python -m benchmarks.latency [--out latency.csv] [--seconds 4] [--formats onnx …]

Networks hold initial weights, pruned in one shot by magnitude, as latency does not depend on what was learnt. A row a
format and network: bytes, milliseconds of 1 and of 64 images, and how many times as fast as the dense network, by
medians of calls that the networks take in turns. One thread.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lottery.masks import Mask
from lottery.params import Model, Network, Pattern, Prune, Rates
from lottery.tickets.pruning import pruned
from lottery.tools import formats

CONV4 = Network(Model(name="conv4", initializer="glorot_normal"), (32, 32, 3), 10)
PRUNED: dict[str, tuple[Pattern, Rates]] = {
    "5 % of the weights": ("weight", Rates(conv=0.95, dense=0.95, output=0.95)),
    "2 of 4 inputs": ((2, 4), Rates(conv=0.5, dense=0.5, output=0.0)),
    "a quarter of the units": ("unit", Rates(conv=0.75, dense=0.75, output=0.0)),
}
IMAGES = 64


def networks() -> dict[str, Any]:
    """Keras models by name, the dense one first."""
    from lottery.tools import dead_units
    from lottery.training import models

    weights, kinds = models.initialise(CONV4, "initialisation", 0)
    shapes = {name: weights[name].shape for name in kinds}

    def holding(mask: Mask) -> Any:
        """Conv-4 under a mask."""
        model = models.build(CONV4)
        models.assign(model, mask.apply(weights))
        return model

    full = Mask.full(shapes)
    found = {"dense": holding(full)}
    for name, (pattern, rates) in PRUNED.items():
        keep = Prune(rounds=1, rates=rates, pattern=pattern, rewind_iteration=0).surviving(
            shapes, kinds, 1
        )
        how = {"criterion": "magnitude", "initial": weights, "network": CONV4, "seed": 0}
        mask = pruned(full, weights, keep, pattern=pattern, **how)  # type: ignore[arg-type]
        found[name] = holding(mask)
        smaller, left = dead_units.remove(holding(mask), dict(mask.layers))
        if Mask(left).sizes != mask.sizes:
            found[f"{name}, dead ones removed"] = smaller
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each network, at least")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=formats.FORMATS,
        default=["savedmodel", "tflite", "tflite-int8", "onnx"],
    )
    options = parser.parse_args()
    from lottery.training import device

    device.configure(1)
    formats.SECONDS = options.seconds
    images = np.random.default_rng(0).random((IMAGES, *CONV4.image_shape), np.float32)
    found = networks()
    exported = formats.Exported(None, Mask({}), {}, images)
    table = pd.DataFrame(formats.latencies(found, options.formats, exported, images))
    if options.out:
        table.to_csv(options.out, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
