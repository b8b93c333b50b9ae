"""``python -m lottery tickets``: the masks of a finished experiment, for others to take.

Writes ``tickets/NAME``: for each seed and retrained round a mask (``seed-N/round-NN.npz``), what
its ticket reached (``tickets.csv``), the experiment that takes the masks over (``params.yaml``) and
a model card. With ``--verify`` it retrains a ticket of a committed folder instead, in a clean clone
with an empty run store, and compares what it reaches.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from lottery import params
from lottery.artifacts import files, tables
from lottery.code import left_over
from lottery.datasets.sources import OWN
from lottery.errors import LotteryError
from lottery.params import Params
from lottery.report.outcomes import guess, outcomes
from lottery.report.text import templates
from lottery.tickets import given
from lottery.tools.check import results_of
from lottery.tools.verify import reproduced

FOLDER, TABLE = Path("tickets"), "tickets.csv"
PUBLISHED = ("README.md", "params.yaml", TABLE)  # beside masks
KEYS, REACHED = ["seed", "round"], ["early_stop_iteration", "test_accuracy"]
COLUMNS = [*KEYS, "weights_remaining", *REACHED, "start_sha256"]


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery tickets NAME``: publishes tickets, or verifies published ones."""
    parser = argparse.ArgumentParser(prog="python -m lottery tickets", description=__doc__)
    parser.add_argument("name", help="of the folder in tickets/; tickets there are replaced")
    parser.add_argument("--verify", action="store_true", help="retrain a ticket that is published")
    parser.add_argument("--seed", type=int, help="of that ticket; by default the first there is")
    parser.add_argument("--round", type=int, help="its pruning round; by default the last there is")
    parser.add_argument("--source", help="a local copy of its dataset, in place of a download")
    options = parser.parse_args(arguments)
    name = options.name
    if Path(name).name != name or name in ("", "..", "."):
        raise LotteryError(f"NAME: got {name!r}; accepted: the name of a folder in {FOLDER}/")
    chosen = [name for name in ("seed", "round", "source") if vars(options)[name] is not None]
    if chosen and not options.verify:
        raise LotteryError(f"--{chosen[0]}: accepted with --verify only: all tickets are published")
    if options.verify:
        print(verified(name, options.seed, options.round, options.source))
    else:
        loaded = params.load()
        results_of(loaded)
        print(f"tickets: written to {publish(loaded, name)}")
        print("tickets: `prune` depends on them: `dvc repro` once more, then commit all of it")


def publish(loaded: Params, name: str) -> Path:
    """Writes ``tickets/<name>`` whole; LotteryError where the pipeline has not finished, or tickets
    are no masks over weights that their seeds give.
    """
    if loaded.prune.strategy != "rewind":
        raise LotteryError(
            f"params.yaml: prune.strategy: got {loaded.prune.strategy}; accepted: rewind: masks "
            "and seeds alone do not give the weights that such networks keep"
        )
    _check_replaceable(FOLDER / name, loaded.retrain.masks)
    facts = files.read_json(files.DATASET / "dataset.json")
    runs = reached(files.RETRAINED, loaded, facts)[KEYS + REACHED]
    with files.folder_written_whole(FOLDER / name) as folder:
        rows = []
        for seed in loaded.seeds:
            start = files.seed_folder(files.DENSE, seed) / "rewind.safetensors"
            sha256 = sha256_of(files.read_tensors(start)[0])
            for number in sorted(loaded.retrain_rounds()):
                mask, _ = files.read_mask(files.round_file(files.MASKS, seed, number))
                given.write_file(given.round_file(folder, seed, number), mask)
                rows.append([seed, number, mask.weights_remaining, sha256])
        masks = pd.DataFrame(rows, columns=[*KEYS, "weights_remaining", "start_sha256"])
        table = masks.merge(runs, "left")[COLUMNS]
        tables.write_table(folder / TABLE, table)
        recipe = loaded.model_dump(mode="json")
        recipe["data"] |= {"source": None, "sha256": None}
        recipe["retrain"] |= {"variants": ["ticket"], "masks": (FOLDER / name).as_posix()}
        if loaded.retrain.analysis == "connectivity_of_pruning":  # of a search, which there is not
            recipe["retrain"]["analysis"] = "none"
        written = io.StringIO()
        YAML().dump(recipe, written)
        files.write(folder / "params.yaml", written.getvalue().encode())
        files.write(folder / "README.md", card(name, loaded, facts, table).encode())
    return FOLDER / name


def _check_replaceable(folder: Path, masks: str | None) -> None:
    """Raises LotteryError where a folder holds what publishing would not write again."""
    taken = Path(masks).expanduser().resolve() if masks else None
    for path in (p for p in sorted(folder.rglob("*")) if p.is_file() and not left_over(p.name)):
        published = path.name in PUBLISHED or given.FILE.fullmatch(path.name)
        if not published or taken in (path.resolve(), *path.resolve().parents):
            why = "part of retrain.masks" if published else "not of published tickets"
            raise LotteryError(f"{path}: {why}, would be lost; accepted: another NAME")


def reached(folder: Path, loaded: Params, facts: dict) -> pd.DataFrame:
    """One row a ticket in a folder's history: its accuracy at early stop, and where that is."""
    history = tables.read(folder / "history.csv")
    tickets = history[history["variant"] == "ticket"]
    if not len(tickets):
        raise LotteryError("params.yaml: retrain.variants: accepted: a list with ticket in it")
    return outcomes(tickets, chance=guess(facts), stopping=loaded.train.early_stopping)


def verified(name: str, seed: int | None, round_: int | None, source: str | None) -> str:
    """Retrains a published ticket and says how it compares; LotteryError where it does not.

    On the arithmetic that computed it the accuracy is the very same, elsewhere within the range of
    its round's tickets.
    """
    copied = Path(os.path.abspath(Path(source).expanduser())) if source else None  # "." has no name
    recipe, row, others = ticket(name, seed, round_, copied)
    if copied and not copied.exists():
        raise LotteryError(f"--source: got {copied}, which is not there")
    with tempfile.TemporaryDirectory(prefix="lottery-tickets-") as folder:
        try:
            project = reproduced(Path(folder), json.dumps(recipe), "retrain", source=copied)
        except subprocess.CalledProcessError as error:
            why = f"exit status {error.returncode} {error.stderr or ''}"  # or it has said so
            raise LotteryError(f"{' '.join(error.cmd)}: {why.strip()}") from None
        facts = files.read_json(project / files.DATASET / "dataset.json")
        runs = reached(project / files.RETRAINED, params.validate(recipe), facts)
        start = files.seed_folder(project / files.DENSE, int(row["seed"])) / "rewind.safetensors"
        begun = sha256_of(files.read_tensors(start)[0])
    comparison = compared(row, others, float(runs["test_accuracy"].iloc[0]))
    return comparison + ", from other starting weights" * (begun != row["start_sha256"])


def ticket(
    name: str, seed: int | None = None, round_: int | None = None, source: Path | None = None
) -> tuple[dict, pd.Series, pd.DataFrame]:
    """The experiment that retrains one published ticket, its row, those of all of its round."""
    folder = FOLDER / name
    if not (folder / TABLE).exists():
        known = ", ".join(sorted(path.parent.name for path in FOLDER.glob(f"*/{TABLE}"))) or "none"
        raise LotteryError(f"{folder}: no published tickets; accepted: {known}")
    table = tables.read_table(folder / TABLE)
    seed = int(table["seed"].iloc[0]) if seed is None else seed
    round_ = int(table["round"].iloc[-1]) if round_ is None else round_
    others = table[table["round"] == round_]
    if seed not in set(others["seed"]):
        known = " and ".join(f"{k}s {sorted(set(table[k]))}" for k in ("seed", "round"))
        raise LotteryError(f"{folder}: got seed {seed}, round {round_}; accepted: {known}")
    recipe = params.load(folder / "params.yaml").model_dump(mode="json")
    recipe["seeds"], recipe["retrain"]["rounds"] = [seed], [round_]
    recipe["data"]["source"] = str(OWN / source.name) if source else None
    return recipe, others[others["seed"] == seed].iloc[0], others


def compared(row: pd.Series, others: pd.DataFrame, accuracy: float) -> str:
    """A sentence; LotteryError where the accuracy is none of a ticket of that round."""
    published = float(row["test_accuracy"])
    low, high = others["test_accuracy"].agg(["min", "max"])
    comparison = f"test accuracy {accuracy:.2%}, published {published:.2%}"
    if abs(accuracy - published) < 5e-7:
        return f"{comparison}: the same"
    comparison += f" (others of its round {low:.2%} to {high:.2%})"
    if not low <= accuracy <= high:
        raise LotteryError(f"{comparison}: not what such tickets reach")
    return f"{comparison}: within the range of its round, on other arithmetic"


def sha256_of(weights: dict[str, np.ndarray]) -> str:
    """Of the names and values of arrays, in their order."""
    content = b"".join(name.encode() + value.tobytes() for name, value in weights.items())
    return hashlib.sha256(content).hexdigest()


def card(name: str, loaded: Params, facts: dict, table: pd.DataFrame) -> str:
    """The model card of a folder of tickets."""
    by_round = table.groupby("round")
    rounds = by_round["test_accuracy"].agg(["mean", "std", "min", "max", "count"])
    rounds["weights_remaining"] = by_round["weights_remaining"].mean()
    stops = by_round["early_stop_iteration"]
    rounds["stop"], rounds["diverged"] = stops.median(), stops.size() - stops.count()
    recipe = loaded.model_dump(mode="json", include={"model", "train", "prune"})
    about = {"name": name, "dataset": facts, "params": loaded, "recipe": recipe}
    about |= {"rounds": rounds.reset_index().to_dict("records"), "first": table.iloc[0].to_dict()}
    return templates("lottery.tools").get_template("tickets_card.md.jinja").render(about)
