"""The verdict in numbers, for other programs: metrics.json, results.csv and verdict.json."""

import math
from typing import Any

import numpy as np
import pandas as pd

from lottery.report.statistics import Median, at_most, sign_test
from lottery.report.verdict import Conclusion


def metrics(conclusion: Conclusion) -> dict[str, float | str]:
    """The content of ``reports/metrics.json``: at most ten keys; percent and percentage points.

    ``vs_*`` are medians over seeds of the ticket's accuracy minus another's, in the same round.
    """
    values: dict[str, float | str] = {
        "verdict": conclusion.verdict,
        "won": int(conclusion.won),
        "seeds": conclusion.seeds,
        "dense_accuracy": _rounded(100 * conclusion.dense_accuracy),
    }
    if shown := conclusion.shown:
        values["ticket_weights"] = _rounded(100 * shown.weights_remaining)
        values["ticket_accuracy"] = _rounded(100 * shown.accuracy)
        if math.isfinite(shown.early_stop_ratio.value):
            values["early_stop_ratio"] = _rounded(shown.early_stop_ratio.value)
        others = {"vs_dense": "dense", "vs_reinit": "random_reinit", "vs_mask": "random_mask"}
        for name, other in others.items():
            if minus := shown.compared.get(other):
                # in points; beyond four decimals is what rounding left of equal accuracies
                values[name] = round(100 * minus.value, 4) + 0.0
    return values


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def results(runs: pd.DataFrame, conclusion: Conclusion) -> pd.DataFrame:
    """``reports/results.csv``: one row per variant and round.

    Accuracies are shares in [0, 1]. ``ticket_minus`` is the median over seeds of the ticket's
    accuracy minus this variant's in the same round, with its simultaneous interval; in the ticket's
    own rows minus the dense network's.
    """
    spread = {
        f"{column}_{statistic}": (column, statistic)
        for column in ("test_accuracy", "final_test_accuracy", "early_stop_iteration")
        for statistic in ("mean", "std", "min", "max")
    }
    table = runs.groupby(["variant", "round"]).agg(
        weights_remaining=("weights_remaining", "mean"),
        n=("seed", "count"),
        censored=("censored", "sum"),
        improving=("improving", "sum"),
        diverged=("diverged", "sum"),
        **spread,
        initial_test_accuracy_mean=("initial_test_accuracy", "mean"),
    )
    compared = {
        ("ticket" if name == "dense" else name, j.round): minus
        for j in conclusion.rounds
        for name, minus in j.compared.items()
    }
    minus = [compared.get(key, (None,) * 3) for key in table.index]
    table[[f"ticket_minus_{name}" for name in Median._fields]] = np.array(minus, np.float64)
    return table.reset_index()


def as_json(conclusion: Conclusion, confidence: float) -> dict[str, Any]:
    """``reports/verdict.json``: the verdict and the judgement of each round, as tested."""
    shown = conclusion.shown
    return {
        "verdict": conclusion.verdict,
        "reason": conclusion.reason,
        "round": shown.round if shown else None,
        "seeds": conclusion.seeds,
        "learned": conclusion.learned,
        "rounds": [
            {
                "round": j.round,
                "weights_remaining": _rounded(j.weights_remaining),
                "outcome": j.outcome,
                "p_win": _rounded(j.p_win),
                "p_loss": _rounded(j.p_loss),
                "early_stop_ratio": _numbers(j.early_stop_ratio),
                "accuracy_minus": {name: _numbers(m) for name, m in j.compared.items()},
                "criteria": [
                    {
                        "name": c.name,
                        "bound": c.bound,
                        "misses": c.misses,
                        "misses_at_most": _rounded(at_most(c.misses, c.seeds, confidence)),
                        "p": _rounded(sign_test(c.met, c.seeds)),
                    }
                    for c in j.criteria
                ],
            }
            for j in conclusion.rounds
        ],
    }


def _numbers(median: Median) -> list[float | None]:
    return [None if v is None or math.isinf(v) else _rounded(v) for v in median]
