"""``python -m lottery export``: a ticket in formats that other programs run, with a model card.

Runs after ``dvc repro``: reads params.yaml and data/, writes a folder of its own.
"""

import argparse
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from lottery import params
from lottery.artifacts import files, tables
from lottery.datasets.dataset import Dataset, open_dataset
from lottery.datasets.split import Split, scaled
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.report.text import templates
from lottery.tickets import given
from lottery.tickets.search import rounds_to_train
from lottery.tickets.ticket import read_dense
from lottery.tools import formats
from lottery.tools.check import results_of

FACTS, CARD = "export.json", "README.md"
CALIBRATION_IMAGES = 256


class Ticket(NamedTuple):
    """A ticket as the pipeline has it, and the dense network, trained or rewound likewise."""

    name: str
    seed: int
    round: int
    weights: dict[str, np.ndarray]  # pruned ones are 0
    mask: Mask
    dense: dict[str, np.ndarray]
    evaluations: Any  # the pipeline's of such networks: a data frame indexed by seed


def choose_round(loaded: params.Params) -> int:
    """The round in reports/verdict.json, else the last that was retrained."""
    try:
        round_ = files.read_json(files.REPORTS / "verdict.json")["round"]
    except (LotteryError, KeyError, TypeError):
        round_ = None
    return round_ if round_ in range(1, loaded.prune.rounds + 1) else loaded.retrain_rounds()[-1]


def read_ticket(loaded: params.Params, seed: int, round_: int, *, initial: bool) -> Ticket:
    """A ticket from data/, of round 0 the dense network; LotteryError where it is not there."""
    prune, folder = loaded.prune, files.PRUNED if round_ else files.DENSE
    file = f"{'rewind' if initial else 'trained'}.safetensors"
    dense, facts = files.read_tensors(files.seed_folder(files.DENSE, seed) / file)
    weights, mask = dense, Mask.full({name: dense[name].shape for name in facts["kinds"]})
    if round_ and initial:
        mask, _ = files.read_mask(files.round_file(files.MASKS, seed, round_))
        weights = mask.apply(dense)
    elif round_:
        weights, mask, _ = files.read_masked_weights(files.round_file(folder, seed, round_))
    history = tables.read(folder / "history.csv")
    history = history[history["round"] == round_]
    if initial:  # where a run that was rewound began; of a dense one, where it passed
        recorded = not round_ or prune.strategy == "rewind"
        history = history[recorded & (history["iteration"] == prune.rewind_iteration)]
    name = f"ticket of seed {seed}, round {round_}" if round_ else f"dense network of seed {seed}"
    name += ", before training" if initial else ", trained"
    last = history.drop_duplicates("seed", keep="last").set_index("seed")
    return Ticket(name, seed, round_, weights, mask, dense, last)


def agreement(
    loaded: params.Params, ticket: Ticket, dataset: Dataset, split: Split, logits: np.ndarray
) -> str:
    """The accuracy that the pipeline recorded and that of now; LotteryError where they differ.

    Images may change their class whose two highest logits (of test images, float32 ``[n,
    classes]``) are no further apart than twice the rounding.
    """
    from lottery.training import trainer

    if ticket.seed not in ticket.evaluations.index:
        return "The pipeline recorded no accuracy of these weights."
    folder = files.PRUNED if ticket.round else files.DENSE
    row, parts = ticket.evaluations.loc[ticket.seed], split[1:]  # evaluated together in training
    accuracies = row[["validation_accuracy", "test_accuracy"]]
    recorded = np.average(accuracies, weights=[len(part) for part in parts])
    pipeline = trainer.Trainer(loaded.model, loaded.train, dataset)
    _, again = pipeline.evaluate(np.concatenate(parts), ticket.weights)
    highest = np.sort(logits, axis=1)[:, -2:]
    near = 2 * formats.ROUNDING[loaded.train.precision] * np.abs(logits).max()
    allowed = float(np.mean(highest[:, 1] - highest[:, 0] <= near))
    text = (
        f"Accuracy on validation and test images in {folder}/history.csv: {recorded:.2%}; evaluated"
        f" again in {loaded.train.precision}: {again:.2%}; accepted within {allowed:.2%}."
    )
    if np.isnan(row["validation_loss"]) or abs(again - recorded) > allowed + 1e-6:  # seven digits
        raise LotteryError(f"{ticket.name}: diverged, or not what the pipeline recorded. {text}")
    return text


def export(
    loaded: params.Params,
    ticket: Ticket,
    out: Path,
    names: list[str],
    *,
    keep_dead_units: bool,
    latency: bool = True,
) -> str:
    """Writes the folder ``out``, whole or not at all, and gives its model card.

    Raises LotteryError where accuracies or logits do not agree with the pipeline's, a format cannot
    hold the network, or ``out`` holds what no export wrote.
    """
    from lottery.tools import dead_units
    from lottery.training import models

    dataset = open_dataset()
    split = dataset.split(loaded.data, ticket.seed)
    test = dataset.part(split.test)

    def holding(weights: dict[str, np.ndarray]) -> Any:
        """The network with these weights; without dropout, which is of training alone."""
        network = models.build(params.Network(loaded.model, dataset.image_shape, dataset.classes))
        with formats.attempt(f"{ticket.name}: not of params.yaml's model and data; `dvc repro`"):
            models.assign(network, weights)
        return network

    networks = {"dense network": holding(ticket.dense), "ticket": holding(ticket.weights)}
    expected = formats.in_batches(formats.of_keras(networks["ticket"]), test.images)
    agreed = agreement(loaded, ticket, dataset, split, expected)
    table = []
    for name, values in zip(networks, (ticket.dense, ticket.weights), strict=True):
        stored = safetensors.numpy.save(values)
        row = formats.measured(formats.of_keras(networks[name]), stored, test, expected)
        table.append({"title": f"{name}, all values", "file": None, **row})
    model, masks = networks["ticket"], dict(ticket.mask.layers)
    if not keep_dead_units:
        with formats.attempt("dead units: cannot be removed here; --keep-dead-units"):
            model, masks = dead_units.remove(model, masks)
        networks["ticket, dead units removed"] = model
    facts = _facts(loaded, ticket, dataset, masks)
    some = dataset.part(split.train[:: -(-len(split.train) // CALIBRATION_IMAGES)])
    exported = formats.Exported(model, Mask(masks), facts, scaled(some.images))
    images = scaled(test.images[: formats.BATCH])
    with files.folder_written_whole(out) as folder:
        table += [formats.written(name, exported, folder, test, expected) for name in names]
        timed = formats.latencies(networks, names if latency else [], exported, images)
        facts |= {"agreement": agreed, "table": table, "units": _units(ticket.mask, masks)}
        facts |= {"latency": timed, "batch": len(images)}
        text = card(loaded, ticket, dataset, facts | {"split": split})
        files.write(folder / CARD, text.encode())
        contents = {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("*")}
        files.write_json(folder / FACTS, {**facts, "contents": contents})
        check_out(out)  # again, as some time has passed
    return text


def _facts(
    loaded: params.Params, ticket: Ticket, dataset: Dataset, masks: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What a program that runs an exported network has to know; JSON."""
    in_range = [0, 1] if dataset.images.dtype == np.uint8 else None
    return {
        "name": ticket.name,
        "seed": ticket.seed,
        "round": ticket.round,
        "model": loaded.model.name,
        "weights_remaining": ticket.mask.weights_remaining,
        "class_names": dataset.facts.get("class_names") or [*map(str, range(dataset.classes))],
        "kernels": {name: keep.shape for name, keep in masks.items()},
        "images": {"shape": dataset.image_shape, "type": "float32", "range": in_range},
    }


def _units(before: Mask, masks: dict[str, np.ndarray]) -> dict[str, tuple[int, int, int]]:
    """By layer: units, those removed, and the dead ones left."""
    layers = {}
    for name, keep in masks.items():
        units = before.layers[name].shape[-1]
        left = np.sum(~np.any(keep, axis=tuple(range(keep.ndim - 1))))
        layers[name.removesuffix("/kernel")] = units, units - keep.shape[-1], int(left)
    return layers


def card(loaded: params.Params, ticket: Ticket, dataset: Dataset, facts: dict[str, Any]) -> str:
    """The model card; names of classes, layers and datasets are text there, never markup."""
    finite = ticket.evaluations.dropna(subset="validation_loss")["test_accuracy"]
    recipe = loaded.model_dump(include={"model", "train", "prune"})
    accuracies, diverged = finite.describe().to_dict(), len(ticket.evaluations) - len(finite)
    template = templates("lottery.tools").get_template("model_card.md.jinja")
    context = {"dataset": dataset.facts, "recipe": recipe, "accuracies": accuracies}
    return template.render(facts, **context, diverged=diverged)


def digest(path: Path) -> str | None:
    """The sha256 of a file, "folder", or None of a link or what else is neither."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return None
    return "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()


def check_out(out: Path) -> None:
    """LotteryError where a folder to write holds other than its export.json lists with sha256."""
    known = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = {**json.loads((out / FACTS).read_bytes())["contents"], FACTS: digest(out / FACTS)}
    for path in out.rglob("*") if out.is_dir() else [out] if out.exists() else []:
        name = path.relative_to(out).as_posix()
        if not known.get(name) or known[name] != digest(path):
            raise LotteryError(
                f"--out: got {out}, where no export wrote {path.name}, or it was changed since; "
                "accepted: a new or empty folder, or an export as it was written"
            )


def main(arguments: list[str]) -> None:
    """``python -m lottery export``. Raises LotteryError."""
    parser = argparse.ArgumentParser(prog="python -m lottery export", description=__doc__)
    add = parser.add_argument
    add("--seed", type=int, help="one of `seeds` in params.yaml; by default the first")
    rounds_help = "0: the dense network; by default the sparsest that wins, or else the sparsest"
    add("--round", type=int, help=rounds_help)
    add("--initial", action="store_true", help="before training: masked initial or rewound weights")
    add("--out", type=Path, default=Path("export"), help="a new or empty folder, or an export")
    add("--formats", nargs="+", choices=formats.FORMATS, default=[*formats.FORMATS])
    add("--keep-dead-units", action="store_true", help="leave every layer its size")
    add("--no-latency", action="store_true", help="time nothing: half as long")
    options = parser.parse_args(arguments)
    loaded = params.load()
    prune = loaded.prune
    seed = loaded.seeds[0] if options.seed is None else options.seed
    round_ = choose_round(loaded) if options.round is None else options.round
    rounds = range(prune.rounds + 1)
    for option, got, known in (("seed", seed, loaded.seeds), ("round", round_, rounds)):
        if got not in known:
            raise LotteryError(f"--{option}: got {got}; accepted: {', '.join(map(str, known))}")
    if round_ and not options.initial and not prune.trains:
        why = f"{prune.criterion}, {prune.schedule} pruning trains no tickets"
        raise LotteryError(f"--round: got {round_}; accepted: 0, or --initial: {why}")
    out = options.out.resolve()
    check_out(out)
    results_of(loaded)
    masks = given.read(loaded, seed, read_dense(seed).full_mask.shapes).masks
    if round_ and not options.initial and round_ not in rounds_to_train(prune, masks):
        why = "its mask is of retrain.masks: nothing trained it"
        raise LotteryError(f"--round: got {round_}; accepted: 0, or --initial: {why}")
    ticket = read_ticket(loaded, seed, round_, initial=options.initial)
    print(f"export: {ticket.name}", flush=True)
    with formats.attempt("TensorFlow: cannot be set up"):
        from lottery.training import device

        device.configure(loaded.train.threads)
    names = [name for name in formats.FORMATS if name in options.formats]
    how = {"keep_dead_units": options.keep_dead_units, "latency": not options.no_latency}
    print(export(loaded, ticket, out, names, **how))
    print(f"export: written to {options.out}")
