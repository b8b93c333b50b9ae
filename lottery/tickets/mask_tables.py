"""Masks checked against what pruning promises, and as tables: density, overlap, dead units."""

import math
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from lottery.artifacts import files, tables
from lottery.masks import Mask, overlap
from lottery.params import Pattern
from lottery.tickets import patterns

ALL = "all"  # in the layer column: the whole network


def check(
    mask: Mask,
    before: Mask | None,
    expected: Mapping[str, int] | int,
    path: Path,
    pattern: Pattern = "weight",
) -> None:
    """Raises LotteryError unless masks are nested, of their pattern and of the counts expected."""
    if not patterns.holds(mask, pattern):
        raise files.broken(path, f"its mask is not of prune.pattern {pattern}")
    counts = mask.counts
    if isinstance(expected, int):
        counts, expected = {ALL: sum(counts.values())}, {ALL: expected}
    for name, count in expected.items():
        if counts[name] != count:
            raise files.broken(path, f"{name} keeps {counts[name]} weights, expected {count}")
    if before is not None and not mask.within(before):
        raise files.broken(path, "keeps weights that the round before had pruned")


def write_density(
    path: Path,
    masks: Mapping[tuple[int, int], Mask],
    effective: Mapping[tuple[int, int], Mapping[str, float] | None],
) -> None:
    """``seed, round, layer, weights, surviving, weights_remaining, effective``, by layer and of the
    whole network.

    ``effective``: survivors that lie on a path from input to output, missing where paths cannot be
    counted.
    """
    rows = []
    for (seed, round_), mask in masks.items():
        on_path = effective[seed, round_] or dict.fromkeys(mask.sizes, math.nan)
        by_layer = (mask.sizes, mask.counts, on_path)
        sizes, counts, on_path = ({**n, ALL: sum(n.values())} for n in by_layer)
        for name, size in sizes.items():
            count = counts[name]
            rows.append([seed, round_, name, size, count, count / size, on_path[name]])
    header = ["seed", "round", "layer", "weights", "surviving", "weights_remaining", "effective"]
    tables.write_rows(path, header, rows)


def write_overlap(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``round, seed_a, seed_b, layer, jaccard, jaccard_by_chance`` for each pair of seeds."""
    rows = []
    for round_ in sorted({number for _, number in masks}):
        seeds = [seed for seed, number in masks if number == round_]
        for a, b in combinations(seeds, 2):
            for name, keep in masks[a, round_].layers.items():
                rows.append([round_, a, b, name, *overlap(keep, masks[b, round_].layers[name])])
    header = ["round", "seed_a", "seed_b", "layer", "jaccard", "jaccard_by_chance"]
    tables.write_rows(path, header, rows)


def write_units(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``seed, round, layer, units, dead``, by layer.

    A neuron or filter is dead when none of its incoming weights survives.
    """
    rows = []
    for (seed, round_), mask in masks.items():
        for name, keep in mask.layers.items():
            alive = keep.reshape(-1, keep.shape[-1]).any(axis=0)
            rows.append([seed, round_, name, alive.size, np.count_nonzero(~alive)])
    tables.write_rows(path, ["seed", "round", "layer", "units", "dead"], rows)


def write_first_layer(path: Path, masks: Mapping[tuple[int, int], Mask]) -> None:
    """``round, input, weights_remaining``: of each input of the first layer, over seeds.

    Inputs are numbered in C order: pixels and channels of the image for a dense layer, of the
    kernel for a convolution.
    """
    rows = []
    for round_ in sorted({number for _, number in masks}):
        first = [next(iter(m.layers.values())) for (_, r), m in masks.items() if r == round_]
        shares = np.mean([keep.reshape(-1, keep.shape[-1]).mean(axis=1) for keep in first], axis=0)
        rows += [[round_, i, f"{share:.6g}"] for i, share in enumerate(shares)]
    tables.write_rows(path, ["round", "input", "weights_remaining"], rows)
