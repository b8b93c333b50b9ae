"""Masks checked against what pruning promises, and as tables: density, overlap, dead units."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from lottery.artifacts import files, tables
from lottery.masks import Mask, overlap

ALL = "all"  # in the layer column: the whole network


def check(mask: Mask, before: Mask | None, expected: Mapping[str, int] | int, path: Path) -> None:
    """Raises LotteryError unless the expected number of weights survives, by layer or in all, and
    masks are nested.
    """
    counts = mask.counts
    if isinstance(expected, int):
        counts, expected = {ALL: sum(counts.values())}, {ALL: expected}
    for name, count in expected.items():
        if counts[name] != count:
            raise files.broken(path, f"{name} keeps {counts[name]} weights, expected {count}")
    if before is not None and not mask.within(before):
        raise files.broken(path, "keeps weights that the round before had pruned")


def write_density(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``seed, round, layer, weights, surviving, weights_remaining``, by layer and for the whole
    network.
    """
    rows = []
    for (seed, round_), mask in masks.items():
        sizes, counts = mask.sizes, mask.counts
        for name in sizes:
            rows.append(
                [seed, round_, name, sizes[name], counts[name], f"{counts[name] / sizes[name]:.7g}"]
            )
        rows.append(
            [
                seed,
                round_,
                ALL,
                sum(sizes.values()),
                sum(counts.values()),
                f"{mask.weights_remaining:.7g}",
            ]
        )
    tables.write_rows(
        path, ["seed", "round", "layer", "weights", "surviving", "weights_remaining"], rows
    )


def write_overlap(
    path: Path, masks: Mapping[tuple[int, int], Mask], pairs: Iterable[tuple[int, int]]
) -> None:
    """``round, seed_a, seed_b, layer, jaccard, jaccard_by_chance`` for each pair of seeds."""
    rows = []
    pairs = list(pairs)
    for round_ in sorted({r for _, r in masks}):
        for a, b in pairs:
            if (a, round_) not in masks or (b, round_) not in masks:
                continue  # masks taken over, of rounds that not every seed has
            for name, keep in masks[a, round_].layers.items():
                found, chance = overlap(keep, masks[b, round_].layers[name])
                rows.append([round_, a, b, name, f"{found:.7g}", f"{chance:.7g}"])
    tables.write_rows(
        path, ["round", "seed_a", "seed_b", "layer", "jaccard", "jaccard_by_chance"], rows
    )


def write_units(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``seed, round, layer, units, dead``, by layer.

    A neuron or filter is dead when none of its incoming weights survives.
    """
    rows = []
    for (seed, round_), mask in masks.items():
        for name, keep in mask.layers.items():
            incoming = keep.reshape(-1, keep.shape[-1])
            rows.append(
                [seed, round_, name, keep.shape[-1], int(np.count_nonzero(~incoming.any(axis=0)))]
            )
    tables.write_rows(path, ["seed", "round", "layer", "units", "dead"], rows)


def write_first_layer(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``round, input, weights_remaining``: of each input of the first layer, over seeds.

    Inputs are numbered in C order: pixels and channels of the image for a dense layer, of the
    kernel for a convolution.
    """
    rows = []
    for round_ in sorted({r for _, r in masks}):
        shares = []
        for (_, r), mask in masks.items():
            if r == round_:
                keep = next(iter(mask.layers.values()))
                shares.append(keep.reshape(-1, keep.shape[-1]).mean(axis=1))
        rows += [[round_, i, f"{share:.6g}"] for i, share in enumerate(np.mean(shares, axis=0))]
    tables.write_rows(path, ["round", "input", "weights_remaining"], rows)
