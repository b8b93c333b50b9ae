"""``python -m lottery tickets``: the masks of a finished experiment, for others to take.

Writes ``tickets/NAME``: for each seed and retrained round a mask (``seed-N/round-NN.npz``), what its
ticket reached (``tickets.csv``), the experiment that takes the masks over (``params.yaml``) and a
model card. ``python -m lottery verify --tickets tickets/NAME`` retrains one of them and compares.
"""

import argparse
import hashlib
import io
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from lottery import params
from lottery.artifacts import files, tables
from lottery.errors import LotteryError
from lottery.params import Params
from lottery.report.outcomes import outcomes
from lottery.tickets import given

FOLDER, TABLE, CARD = Path("tickets"), "tickets.csv", "README.md"
TEMPLATE = Path(__file__).with_name("tickets_card.md.jinja")


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery tickets NAME``: publishes the tickets of the present results."""
    parser = argparse.ArgumentParser(prog="python -m lottery tickets", description=__doc__)
    parser.add_argument("name", help="of the folder in tickets/; one that is there is replaced")
    name = parser.parse_args(arguments).name
    try:
        if Path(name).name != name or name in ("", "..", "."):
            raise LotteryError(f"NAME: got {name!r}; accepted: the name of a folder in {FOLDER}/")
        print(f"tickets: written to {publish(params.load(), name)}")
    except LotteryError as error:
        parser.exit(1, "".join(f"tickets: {line}\n" for line in str(error).splitlines()))


def publish(loaded: Params, name: str) -> Path:
    """Writes ``tickets/<name>`` whole or not at all.

    Raises LotteryError where the pipeline has not finished.
    """
    facts = files.read_json(files.DATASET / "dataset.json")
    runs = reached(files.RETRAINED, loaded, facts).set_index(["seed", "round"])
    with files.folder_written_whole(FOLDER / name) as folder:
        rows = []
        for seed in loaded.seeds:
            dense = files.seed_folder(files.DENSE, seed)
            start, _ = files.read_tensors(dense / "rewind.safetensors")
            for number in sorted(loaded.retrain_rounds()):
                mask, _ = files.read_mask(files.round_file(files.MASKS, seed, number))
                given.write_file(given.round_file(folder, seed, number), mask)
                rows.append(
                    {
                        "seed": seed,
                        "round": number,
                        "weights_remaining": mask.weights_remaining,
                        "early_stop_iteration": runs["early_stop_iteration"].get((seed, number)),
                        "test_accuracy": runs["test_accuracy"].get((seed, number)),
                        "start_sha256": sha256_of(start),
                    }
                )
        table = pd.DataFrame(rows)
        tables.write_table(folder / TABLE, table)
        recipe = loaded.model_dump(mode="json")
        recipe["data"] |= {"source": None, "sha256": None}
        recipe["retrain"] |= {"variants": ["ticket"], "masks": (FOLDER / name).as_posix()}
        written = io.StringIO()
        YAML().dump(recipe, written)
        files.write(folder / "params.yaml", written.getvalue().encode())
        files.write(folder / CARD, card(name, loaded, facts, table).encode())
    return FOLDER / name


def reached(folder: Path, loaded: Params, facts: dict) -> pd.DataFrame:
    """One row a ticket in a folder's history: its accuracy at early stop, and where that is."""
    history = tables.read(folder / "history.csv")
    chance = max(facts["class_counts"]) / sum(facts["class_counts"])
    tickets = history[history["variant"] == "ticket"]
    if not len(tickets):
        raise LotteryError("params.yaml: retrain.variants: accepted: a list with ticket in it")
    return outcomes(tickets, chance=chance, stopping=loaded.train.early_stopping)


def sha256_of(weights: dict[str, np.ndarray]) -> str:
    """Of the names and values of arrays, in their order."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


def card(name: str, loaded: Params, facts: dict, table: pd.DataFrame) -> str:
    """The model card of a folder of tickets."""
    rounds = table.groupby("round").agg(
        weights_remaining=("weights_remaining", "mean"),
        mean=("test_accuracy", "mean"),
        std=("test_accuracy", "std"),
        min=("test_accuracy", "min"),
        max=("test_accuracy", "max"),
        stop=("early_stop_iteration", "median"),
        seeds=("test_accuracy", "count"),
    )
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        dataset=facts,
        params=loaded,
        recipe=loaded.model_dump(mode="json", include={"model", "train", "prune"}),
        rounds=rounds.reset_index().to_dict("records"),
        first=table.iloc[0].to_dict(),
    )
