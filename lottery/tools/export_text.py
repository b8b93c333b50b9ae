"""export.md: what an export holds, in bytes, accuracy and latency."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lottery.tools import dead_units

ZEROS = (
    "Unstructured zeros do not speed up dense kernels: they are multiplied like any other value. The ticket saves bytes where "
    "it is stored as mask and values, or compressed. It saves time only by the dead units removed, or on a runtime with sparse "
    "kernels, which none of these is by default."
)


class Row(NamedTuple):
    """A line of the table: the test accuracy in [0, 1], latencies in milliseconds."""

    title: str
    file: str | None
    bytes: int
    gzip: int
    test_accuracy: float
    classed_otherwise: int  # test images, against the pipeline's network in float32
    one_image: float
    batch: float


def markdown(
    title: str,
    facts: Mapping[str, Any],
    rows: list[Row],
    batch: int,
    agreement: str,
    latency: str,
    units: str,
) -> str:
    """The whole of export.md; ``batch`` is the number of images of the second latency."""
    shape = ", ".join(map(str, facts["image_shape"]))
    return "\n\n".join(
        [
            f"# {_capital(title)}",
            f"{facts['model']} on {facts['dataset']}, {facts['weights_remaining']:.2%} of the prunable weights. The models take "
            f"float32 images `[n, height, width, channels]` in [0, 1], here `[n, {shape}]`, and give logits "
            f"`[n, {facts['classes']}]`.",
            _table(rows, batch),
            _capital(agreement),
            ZEROS,
            f"Latency is the median of many calls {latency}. Rows without a file, SavedModel and safetensors run in TensorFlow.",
            units,
        ]
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(rows: list[Row], batch: int) -> str:
    head = [
        "",
        "file",
        "bytes",
        "gzip",
        "test accuracy",
        "classed otherwise",
        "1 image, ms",
        f"{batch} images, ms",
    ]
    lines = [head, ["---", "---", *["--:"] * 6]]
    for row in rows:
        file = "–" if row.file is None else f"`{row.file}`"
        numbers = [
            f"{row.bytes:,}",
            f"{row.gzip:,}",
            f"{row.test_accuracy:.2%}",
            f"{row.classed_otherwise}",
        ]
        lines.append([row.title, file, *numbers, f"{row.one_image:.3g}", f"{row.batch:.3g}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def units(
    layers: list[dead_units.Layer],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    *,
    kept: bool,
) -> str:
    """What the removal of dead units did, or with ``kept`` how many there are; weights before and after it."""
    left = dead_units.dead(layers, after)
    if kept:
        by_layer = ", ".join(f"{name} {count}" for name, count in left.items())
        return f"Dead units were kept. Units without a surviving incoming weight, by layer: {by_layer or 'none'}."
    removed = {}
    for layer in layers:
        if layer.kind == "weighted":
            was, now = (weights[f"{layer.name}/kernel"].shape[-1] for weights in (before, after))
            if was > now or layer.name in left:
                removed[layer.name] = was, was - now
    if not removed:
        return "No unit is dead: every layer keeps its size."
    values, fewer = (sum(w.size for w in weights.values()) for weights in (before, after))
    text = f"Dead units removed: {values:,} values become {fewer:,}, zeros counted; {4 * (values - fewer):,} bytes of float32 or "
    text += f"{(values - fewer) / values:.1%} less."
    if left:
        text += " Dead units are left where removing them would not be exact, or is not attempted: see docs/export.md."
    rows = ["| layer | units | removed | dead units left |", "|---|--:|--:|--:|"]
    rows += [
        f"| {name} | {was} | {gone} | {left.get(name, 0)} |"
        for name, (was, gone) in removed.items()
    ]
    return "\n".join([text, "", *rows])
