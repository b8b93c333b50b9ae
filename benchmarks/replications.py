"""The default experiment again, with fresh seeds: does its verdict replicate?

    python -m benchmarks.replications FOLDER [--blocks 10] [--first 2000]
    python -m benchmarks.replications FOLDER --pilot

Trains disjoint blocks of as many seeds as params.yaml lists, in a clone in FOLDER (so that it goes on
where it was stopped), and concludes from each block as the report does. Writes
docs/results/replications/{blocks.csv,index.md}. With 2 cores: about the time of one `dvc repro` a block.

With --pilot: trains the pilot by which the default experiment was designed, 20 other seeds with the
tickets of rounds 4 to 10, and writes pilot.csv: the shares of seeds that meet each criterion, and the
power of the whole conjunction by number of seeds.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from lottery.artifacts import files, tables
from lottery.params import Params, load
from lottery.report import outcomes, verdict
from lottery.report.statistics import power
from lottery.report.summary import metrics

OUT = Path("docs/results/replications")
STAGES = ("fetch", "train_dense", "prune", "extract_masks", "retrain")


PILOT_SEEDS = list(range(1000, 1020))
PILOT_ROUNDS = list(range(4, 11))


def train(folder: Path, seeds: list[int], rounds: list[int] | None = None) -> Params:
    """Runs the stages before the report in a clone, for all these seeds; its parameters."""
    if not (folder / "params.yaml").exists():
        subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    show = ["git", "show", "HEAD:params.yaml"]
    ours, its = (subprocess.check_output(show, cwd=f) for f in (".", folder))
    if ours != its:
        raise SystemExit(f"{folder}: of another experiment; give another folder")
    yaml, path = YAML(), folder / "params.yaml"
    content = yaml.load(path.read_text(encoding="utf-8"))
    content["seeds"] = seeds
    if rounds:
        content["prune"]["rounds"], content["retrain"]["rounds"] = max(rounds), rounds
    with open(path, "w", encoding="utf-8") as file:
        yaml.dump(content, file)
    for stage in STAGES:
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=folder,
            check=True,
            env={**os.environ, "LOTTERY_RUNS": str(folder.absolute() / ".runs")},
        )
    return load(path)


def read(folder: Path, params: Params) -> tuple[pd.DataFrame, float, int]:
    """The outcomes of a clone's runs, the accuracy of a guess, the number of test images."""
    facts = files.read_json(folder / files.DATASET / "dataset.json")
    chance = outcomes.guess(facts)
    history = pd.concat(
        [tables.read(folder / f / "history.csv") for f in (files.DENSE, files.RETRAINED)]
    )
    stopping = params.train.early_stopping
    return outcomes.outcomes(history, chance=chance, stopping=stopping), chance, facts["test"]


def pilot(folder: Path) -> pd.DataFrame:
    """By round: shares of seeds that meet each criterion, and the power of all by number of seeds.

    Shares are estimated as (k + 1) / (n + 2), so that 20 of 20 is not taken for certainty; the power is
    a lower bound, since criteria may miss together.
    """
    params = train(folder, PILOT_SEEDS, PILOT_ROUNDS)
    runs, chance, test = read(folder, params)
    rows = []
    for judgement in verdict.conclude(runs, params, chance=chance, test_images=test).rounds:
        shares = [(c.seeds - c.misses + 1) / (c.seeds + 2) for c in judgement.criteria]
        names = ("accuracy", "iterations", "gain")
        row = {"round": judgement.round, "weights_remaining": judgement.weights_remaining}
        row |= {f"miss_{n}": c.misses for n, c in zip(names, judgement.criteria, strict=True)}
        for n in (8, 12, 16, 20, 21, 22, 23, 24, 28):
            row[f"power_{n}"] = max(0.0, 1 - sum(1 - power(s, n, 0.05) for s in shares))
        rows.append(row)
    longest = runs.groupby("round")["early_stop_iteration"].max()
    table = pd.DataFrame(rows)
    return table.assign(
        censored=table["round"].map(runs.groupby("round")["censored"].sum()),
        latest_early_stop=table["round"].map(longest),
    )


def conclude(folder: Path, params: Params, blocks: list[list[int]], number: int) -> pd.DataFrame:
    """One row a block: its verdict, and the ticket of a round against the others of that round."""
    runs, chance, test = read(folder, params)
    rows = []
    for seeds in blocks:
        some = runs[runs["seed"].isin(seeds)]
        found = verdict.conclude(some, params, chance=chance, test_images=test)
        judgement = next(j for j in found.rounds if j.round == number)
        gain = judgement.compared["random_reinit"]
        rows.append(
            {
                "seeds": f"{seeds[0]} to {seeds[-1]}",
                **{k: v for k, v in metrics(found).items() if k not in ("seeds", "won")},
                "p": judgement.p_win,
                "misses": "/".join(str(c.misses) for c in judgement.criteria),
                "gain": 100 * gain.value,
                "low": None if gain.low is None else 100 * gain.low,
                "high": None if gain.high is None else 100 * gain.high,
            }
        )
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, committed: str, number: int, params: Params, size: int) -> str:
    """The page: how many blocks agree, and how many intervals cover the mean of all."""
    mean = table["gain"].mean()
    covered = int(((table["low"] <= mean) & (mean <= table["high"])).sum())
    agree = int((table["verdict"] == committed).sum())
    shown = table.drop(columns=["vs_reinit"]).round(4).to_markdown(index=False)
    return f"""# Does the default experiment's verdict replicate?

The default experiment (`params.yaml`), with {len(table)} disjoint blocks of {size} fresh seeds each:
fresh weights, orders, controls and splits. Made by `python -m benchmarks.replications`.

- **{agree} of {len(table)}** blocks give the committed verdict, "{committed}".
- **{covered} of {len(table)}** intervals of the gain over `random_reinit` at round {number} cover the
  mean over all blocks, {mean:.2f} points.

{shown}

Accuracies in percent, differences in percentage points (medians over seeds, of the round that the block
shows: its sparsest winner); `gain`, `low`, `high`, `p` and `misses` (seeds that miss accuracy /
iterations / gain by themselves) are of round {number}, with the interval at
{params.report.confidence:.0%}, simultaneous over the rounds listed.
"""


def main() -> None:
    """Trains, concludes, writes the table and the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the clone is, or is made")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--first", type=int, default=2000, help="the first seed of the first block")
    parser.add_argument("--pilot", action="store_true", help="train the pilot instead")
    options = parser.parse_args()
    if options.pilot:
        table = pilot(options.folder)
        tables.write_table(OUT / "pilot.csv", table)
        print(table.to_markdown(index=False))
        return
    committed = files.read_json(files.REPORTS / "verdict.json")
    size = len(load().seeds)
    firsts = [options.first + block * size for block in range(options.blocks)]
    blocks = [list(range(first, first + size)) for first in firsts]
    params = train(options.folder, [seed for block in blocks for seed in block])
    table = conclude(options.folder, params, blocks, committed["round"])
    tables.write_table(OUT / "blocks.csv", table)
    page = summary(table, committed["verdict"], committed["round"], params, size)
    files.write(OUT / "index.md", page.encode())
    print(page)


if __name__ == "__main__":
    main()
