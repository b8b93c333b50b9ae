"""Histories and other tables as tidy CSV: one row per (seed, variant, round, iteration)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lottery.artifacts import files

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "seed",
    "variant",
    "round",
    "weights_remaining",
    "iteration",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


class Entry(NamedTuple):
    """What one run adds to its stage's history; ``history`` maps the last seven COLUMNS to lists."""

    seed: int
    variant: str
    round: int
    weights_remaining: float
    history: dict[str, list[float]]


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Writes the entries sorted by seed, variant and round; metrics with seven significant digits.

    A metric that is not measured (NaN) is left empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for entry in sorted(entries, key=lambda e: (e.seed, e.variant, e.round)):
        metrics = [entry.history[name] for name in COLUMNS[5:]]
        for iteration, *values in zip(entry.history["iteration"], *metrics, strict=True):
            shown = ["" if v != v else f"{v:.7g}" for v in values]
            writer.writerow([*entry[:3], f"{entry.weights_remaining:.7g}", int(iteration), *shown])
    files.write(path, text.getvalue().encode())


def write_environment(path: Path, environments: Iterable[dict[str, Any]]) -> None:
    """What the runs were computed on: each device, CPU model, thread count and set of versions once."""
    distinct = {json.dumps(environment, sort_keys=True) for environment in environments}
    files.write_json(path, [json.loads(text) for text in sorted(distinct)])


def conclude(
    name: str, entries: Iterable[Entry], environments: Iterable[Mapping[str, Any]]
) -> None:
    """Says what came out: the test accuracy at the end of the runs, by variant, and the devices that computed them."""
    found: dict[str, list[float]] = {}
    for entry in entries:
        found.setdefault(entry.variant, []).append(100 * entry.history["test_accuracy"][-1])
    width = max((len(variant) for variant in found), default=0)
    for variant, values in sorted(found.items()):
        mean = sum(values) / len(values)
        print(
            f"{name}: {variant:<{width}}  {mean:6.2f} % [{min(values):.2f}, {max(values):.2f}] test accuracy at the end, "
            f"{len(values)} run{'s' * (len(values) != 1)}"
        )
    devices = sorted({f"{e['device']}, {e['cpu']}" for e in environments})
    if devices:
        print(f"{name}: computed on {'; '.join(devices)}")


def read(path: Path) -> pd.DataFrame:
    """A stage's history; LotteryError where it is missing or not one."""
    import pandas as pd

    table = read_table(path)
    if list(table.columns) != list(COLUMNS):
        raise files.broken(
            path, f"has the columns {', '.join(table.columns)}; expected {', '.join(COLUMNS)}"
        )
    words = [
        name
        for name in COLUMNS
        if name != "variant" and not pd.api.types.is_numeric_dtype(table[name])
    ]
    if words:
        raise files.broken(path, f"holds something else than numbers in {', '.join(words)}")
    return table


def read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    content = files.read(path)
    if not content.endswith(b"\n"):
        raise files.broken(path, "truncated: its last line has no end")
    try:
        return pd.read_csv(io.BytesIO(content))
    except ValueError as error:
        raise files.broken(path, f"cannot be read as a table ({error})") from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV with six significant digits: the last bits of a mean are no result."""
    files.write(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
