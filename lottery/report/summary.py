"""The verdict in numbers, for other programs: metrics.json, results.csv and verdict.json."""

from typing import Any

import pandas as pd

from lottery.report.statistics import Median, at_most
from lottery.report.verdict import Conclusion


def metrics(conclusion: Conclusion) -> dict[str, float | str]:
    """The content of ``reports/metrics.json``: at most ten keys; percent and percentage points.

    ``vs_*`` are medians over seeds of the ticket's accuracy minus another's, in the same round.
    """
    shown = conclusion.shown
    values: dict[str, float | str] = {
        "verdict": conclusion.verdict,
        "won": int(conclusion.won),
        "seeds": conclusion.seeds,
        "dense_accuracy": _rounded(100 * conclusion.dense_accuracy),
    }
    if shown is not None:
        values["ticket_weights"] = _rounded(100 * shown.weights_remaining)
        values["ticket_accuracy"] = _rounded(100 * shown.accuracy)
        values["early_stop_ratio"] = _rounded(shown.early_stop_ratio.value)
        others = {"vs_dense": "dense", "vs_reinit": "random_reinit", "vs_mask": "random_mask"}
        for key, other in others.items():
            if other in shown.compared:
                # in points; beyond four decimals is what rounding left of equal accuracies
                values[key] = round(100 * shown.compared[other].value, 4) + 0.0
    return values


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def results(runs: pd.DataFrame, conclusion: Conclusion) -> pd.DataFrame:
    """``reports/results.csv``: one row per variant and round.

    Accuracies are shares in [0, 1]. ``ticket_minus`` is the median over seeds of the ticket's
    accuracy minus this variant's in the same round, with its simultaneous interval; in the ticket's
    own rows minus the dense network's.
    """
    compared = {j.round: j.compared for j in conclusion.rounds}
    rows = []
    for (variant, number), group in runs.groupby(["variant", "round"]):
        row: dict[str, Any] = {
            "variant": variant,
            "round": number,
            "weights_remaining": group["weights_remaining"].mean(),
            "n": len(group),
            "censored": int(group["censored"].sum()),
            "diverged": int(group["diverged"].sum()),
        }
        for column in ("test_accuracy", "final_test_accuracy", "early_stop_iteration"):
            for statistic in ("mean", "std", "min", "max"):
                row[f"{column}_{statistic}"] = group[column].agg(statistic)
        row["initial_test_accuracy_mean"] = group["initial_test_accuracy"].mean()
        other = "dense" if variant == "ticket" else variant
        minus = compared.get(int(number), {}).get(str(other))
        for name in ("value", "low", "high"):
            row[f"ticket_minus_{name}"] = getattr(minus, name, None)
        rows.append(row)
    return pd.DataFrame(rows)


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
                        "p": _rounded(c.p_above()),
                    }
                    for c in j.criteria
                ],
            }
            for j in conclusion.rounds
        ],
    }


def _numbers(median: Median) -> list[float | None]:
    values = (median.value, median.low, median.high)
    return [None if v is None else _rounded(v) for v in values]
