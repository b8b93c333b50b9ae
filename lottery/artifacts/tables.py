"""Histories and other tables as tidy CSV: one row per (seed, variant, round, iteration)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lottery.artifacts import files

if TYPE_CHECKING:
    import pandas as pd

HISTORY = (
    "iteration",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)
"""What is known of a run at each evaluation."""
COLUMNS = ("seed", "variant", "round", "weights_remaining", *HISTORY)


def name_of_run(seed: int, variant: str, round_: int) -> str:
    """What people call a run: ``seed 2, ticket, round 6``."""
    return f"seed {seed}, {variant}" + (f", round {round_}" if round_ else "")


class Record(NamedTuple):
    """What a run adds to its stage's tables; ``history`` maps HISTORY to lists."""

    seed: int
    variant: str
    round: int
    weights_remaining: float
    history: dict[str, list[float]]
    environment: Mapping[str, Any] = {}
    cpu: str = ""
    fingerprint: str = ""

    @property
    def diverged(self) -> bool:
        """Whether the run ended because its loss was no longer finite."""
        return math.isnan(self.history["validation_loss"][-1])


def write(path: Path, records: Iterable[Record]) -> None:
    """Writes the histories sorted by seed, variant and round."""
    rows: list[list[Any]] = []
    for record in sorted(records, key=lambda r: r[:3]):
        evaluations = zip(*(record.history[name] for name in HISTORY), strict=True)
        rows += [[*record[:4], int(iteration), *values] for iteration, *values in evaluations]
    write_rows(path, COLUMNS, rows)


def write_rows(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file; of floats seven significant digits, of those not measured (NaN) nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    files.write(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.7g}"


def write_environment(path: Path, environments: Iterable[Mapping[str, Any]]) -> None:
    """What the runs were computed on: each device, thread count and set of versions once."""
    distinct = {json.dumps(environment, sort_keys=True) for environment in environments}
    files.write_json(path, [json.loads(text) for text in sorted(distinct)])


def read(path: Path) -> pd.DataFrame:
    """A stage's history; LotteryError where it is missing or not one."""
    table = read_table(path)
    columns, expected = ", ".join(table.columns), ", ".join(COLUMNS)
    if columns != expected:
        raise files.broken(path, f"has the columns {columns}; expected {expected}")
    words = ", ".join(table.drop(columns="variant").select_dtypes(exclude="number"))
    if words and len(table):
        raise files.broken(path, f"holds something else than numbers in {words}")
    return table


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as a table: only an empty cell is a missing value, "NA" and "null" are names."""
    import pandas as pd

    content = files.read(path)
    if not content.endswith(b"\n"):
        raise files.broken(path, "truncated: its last line has no end")
    try:
        # a layer may be named "NA" or "1": names are words, and only nothing is a missing value
        words = dict.fromkeys(("variant", "layer", "source", "network", "dataset", "method"), str)
        return pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[""], dtype=words)
    except ValueError as error:
        raise files.broken(path, f"cannot be read as a table ({error})") from None


def write_table(path: Path, table: pd.DataFrame) -> None:
    """CSV with six significant digits: the last bits of a mean are no result."""
    files.write(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
