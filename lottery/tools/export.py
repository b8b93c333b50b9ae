"""Takes a ticket home: ``python -m lottery export`` writes a ticket in formats that other programs run.

Runs after ``dvc repro``, in the project's folder: reads params.yaml and data/, writes a folder of its own with one
model a format, a table of bytes, accuracy and latency (export.md), and the same as data (export.json).
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from lottery import params
from lottery.artifacts import files, tables
from lottery.datasets.split import Part
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.running import run
from lottery.tools import dead_units, export_text, formats
from lottery.tools.export_text import Row

METRICS = files.REPORTS / "metrics.json"
FACTS, TABLE = "export.json", "export.md"
CALIBRATION_IMAGES = 256
BATCH = 100  # images of the second latency

ROUNDING = {"float32": 1e-4, "bfloat16": 2**-5}
"""How far logits may be from those of another machine, runtime or precision, as a share of the largest: other kernels sum in
another order, and bfloat16 keeps 8 bits, which is 2^-9 a rounding, over several layers. Accuracies may differ by the test
images whose two highest logits are no further apart than twice that: only those can change their class."""


@dataclass(frozen=True)
class Ticket:
    """A ticket as the pipeline has it; its pruned weights are 0."""

    seed: int
    round: int
    initial: bool
    weights: dict[str, np.ndarray]
    mask: Mask
    dense: dict[str, np.ndarray]  # the dense network's weights, trained or rewound likewise
    source: Path
    folder: Path  # whose history would hold its accuracy
    recorded: float | None

    @property
    def name(self) -> str:
        what = (
            f"ticket of seed {self.seed}, round {self.round}"
            if self.round
            else f"dense network of seed {self.seed}"
        )
        return f"{what}, {'before training' if self.initial else 'trained'}"


def choose_round(loaded: params.Params, given: int | None) -> int:
    """The round given, else the best by validation in reports/metrics.json, else the last; LotteryError if there is none."""
    rounds = loaded.prune.rounds
    if given is not None:
        if not 0 <= given <= rounds:
            raise LotteryError(
                f"--round: got {given}; accepted: 0 (the dense network) to {rounds}, prune.rounds"
            )
        return given
    try:
        best = files.read_json(METRICS)["variants"]["ticket"]["best"]["round"]
    except (LotteryError, KeyError, TypeError):
        return rounds
    return best if isinstance(best, int) and 1 <= best <= rounds else rounds


def read_ticket(loaded: params.Params, seed: int, round_: int, *, initial: bool) -> Ticket:
    """A ticket from data/; LotteryError where the pipeline has not made it, or does not make such tickets."""
    prune = loaded.prune
    if round_ and not initial and not prune.trains:
        why = f"pruning trains no tickets with prune.criterion {prune.criterion}, prune.schedule {prune.schedule}"
        raise LotteryError(f"--round: got {round_}; accepted: 0, or --initial: {why}")
    folder = files.PRUNED if round_ else files.DENSE
    source = (
        files.seed_folder(files.DENSE, seed) / f"{'rewind' if initial else 'trained'}.safetensors"
    )
    dense, facts = files.read_tensors(source)
    if round_ == 0:
        weights, mask = dense, Mask.full({name: dense[name].shape for name in facts["kinds"]})
    elif initial:
        source = files.round_file(files.MASKS, seed, round_)
        mask, _ = files.read_mask(source)
        weights = mask.apply(dense)
    else:
        source = files.round_file(files.PRUNED, seed, round_)
        weights, mask, _ = files.read_masked_weights(source)
    recorded = None
    if round_ == 0 or (prune.trains and (not initial or prune.strategy == "rewind")):
        history = tables.read(folder / "history.csv")
        history = history[(history["seed"] == seed) & (history["round"] == round_)]
        if initial:  # where a run that was rewound began; of a dense one, where it passed
            history = history[history["iteration"] == prune.rewind_iteration]
        recorded = float(history["test_accuracy"].iloc[-1]) if len(history) else None
        if recorded is None and not initial:
            raise files.broken(folder / "history.csv", f"has no seed {seed}, round {round_}")
    return Ticket(seed, round_, initial, weights, mask, dense, source, folder, recorded)


def undecided(logits: np.ndarray, precision: str) -> float:
    """The share of images whose class rounding can change, from float32 logits ``[n, classes]``."""
    highest = np.sort(logits, axis=1)[:, -2:]
    return float(
        np.mean(highest[:, 1] - highest[:, 0] <= 2 * ROUNDING[precision] * np.abs(logits).max())
    )


def compare_with_recorded(
    ticket: Ticket,
    again: float,
    float32: float,
    precision: str,
    tolerance: float,
    *,
    same_machine: bool,
    same_kernels: bool,
) -> str:
    """A sentence on the accuracies; LotteryError where they do not agree.

    Args:
        again: the test accuracy by the pipeline's own evaluation, in its precision, here and now.
        float32: that of the same network in float32 on the CPU.
        tolerance: how far accuracies may differ where they are not computed alike, a share of the test images.
        same_machine: whether device, CPU model, threads and versions are those that the recorded accuracy was computed with.
        same_kernels: whether ``again`` is of float32 on the CPU too.
    """
    if ticket.recorded is None:
        return f"The pipeline recorded no accuracy of these weights; measured here in float32: {float32:.2%}."
    text = f"test accuracy in {ticket.folder}/history.csv: {ticket.recorded:.2%}; evaluated again in {precision}: {again:.2%}"
    if not same_kernels:
        text += f"; in float32 on the CPU: {float32:.2%}"
    tolerance += 1e-6  # the history has seven digits
    agrees = (
        float(f"{again:.7g}") == ticket.recorded
        if same_machine
        else abs(again - ticket.recorded) <= tolerance
    )
    if not agrees or (float32 != again if same_kernels else abs(float32 - again) > tolerance):
        raise LotteryError(
            f"{ticket.source}: does not agree with what the pipeline recorded: {text}"
        )
    within = f"accepted within {100 * tolerance:.2f} points, the images between two classes"
    if not same_machine:
        text += f" (recorded on another machine or with other versions: {within})"
    else:
        text += (
            ", equal"
            if same_kernels
            else f" (the first two are equal; float32 on the CPU rounds otherwise: {within})"
        )
    return f"{text}."


def export(
    loaded: params.Params, ticket: Ticket, out: Path, names: list[str], *, keep_dead_units: bool
) -> str:
    """Writes the folder ``out``, whole or not at all, and gives its table.

    Raises LotteryError where accuracies or logits do not agree with the pipeline's, or a format cannot hold the network.
    """
    from lottery.training import models
    from lottery.training import trainer as training

    dataset, trainer = run.trainer_of(loaded.model, loaded.train, str(files.DATASET))

    def untrained() -> Any:
        width = loaded.model.width  # dropout is of training alone
        return models.build(
            loaded.model.name, dataset.image_shape, dataset.facts["classes"], width=width
        )

    _check_shapes(ticket, models.variables(untrained()))
    original = formats.sized(untrained(), ticket.weights)
    reference = Reference(
        formats.in_batches(formats.of_keras(original), dataset.test.images), dataset.test
    )
    device = training.device_name()
    here = run.describe_environment(device, loaded.train.threads)
    agreement = compare_with_recorded(
        ticket,
        trainer.evaluate(ticket.weights)["test_accuracy"],
        reference.accuracy(reference.logits),
        loaded.train.precision,
        undecided(reference.logits, loaded.train.precision),
        same_machine=files.read_json(ticket.folder / "environment.json") == [here],
        same_kernels=loaded.train.precision == "float32" and device == "CPU",
    )

    layers = formats.described(original)
    weights, masks, smaller = ticket.weights, dict(ticket.mask.layers), original
    if not keep_dead_units:
        try:
            weights, masks = dead_units.remove(layers, weights, masks)
            smaller = formats.sized(untrained(), weights)
        except (ValueError, IndexError, KeyError) as error:  # of an architecture of one's own
            why = _first_line(error)
            raise LotteryError(
                f"{loaded.model.name}: no dead units can be removed ({why}): --keep-dead-units"
            ) from error
    facts = {
        "model": loaded.model.name,
        "dataset": dataset.facts["name"],
        "seed": ticket.seed,
        "round": ticket.round,
        "state": "initial" if ticket.initial else "trained",
        "weights_remaining": ticket.mask.weights_remaining,
        "image_shape": list(dataset.image_shape),
        "classes": dataset.facts["classes"],
        "input": "images: float32 [n, height, width, channels] in [0, 1]",
        "output": "logits: float32 [n, classes]",
    }
    every = -(-len(dataset.train.images) // CALIBRATION_IMAGES)
    network = formats.Network(
        smaller, Mask(masks), facts, formats.scaled(dataset.train.images[::every])
    )

    table = []
    stored = {"dense network, all values": ticket.dense, "ticket, zeros stored": ticket.weights}
    for title, values in list(stored.items())[: 2 if ticket.round else 1]:
        sizes = formats.sizes_of(safetensors.numpy.save(values))
        table.append(
            reference.row(title, None, sizes, formats.of_keras(formats.sized(untrained(), values)))[
                0
            ]
        )
    with files.folder_written_whole(out) as folder:
        rows, furthest = _write_formats(folder, names, network, reference)
        table += rows
        if furthest is not None:
            agreement += f" Logits of the float32 files are at most {furthest:.0e} of the largest away from the pipeline's."
        threads = (
            f"1 thread, or {loaded.train.threads} (train.threads) in TensorFlow"
            if loaded.train.threads > 1
            else "1 thread"
        )
        text = export_text.markdown(
            ticket.name,
            {**facts, "dataset": dataset.facts["title"]},
            table,
            min(BATCH, len(dataset.test.labels)),
            agreement,
            f"with {threads}, measured on this machine ({run.cpu_model()}) and dependent on it",
            export_text.units(layers, ticket.weights, weights, kept=keep_dead_units),
        )
        files.write(folder / TABLE, f"{text}\n".encode())
        measurements = {
            "recorded_test_accuracy": ticket.recorded,
            "table": [row._asdict() for row in table],
        }
        files.write_json(folder / FACTS, {**facts, **measurements})
    return text


@dataclass(frozen=True)
class Reference:
    """The pipeline's network on the test set: what every file is compared with."""

    logits: np.ndarray  # float32 [n, classes]
    test: Part

    def accuracy(self, logits: np.ndarray) -> float:
        return float((logits.argmax(axis=1) == self.test.labels).mean())

    def row(
        self, title: str, file: str | None, sizes: tuple[int, int], run: formats.Logits
    ) -> tuple[Row, float]:
        """A line of the table, and how far the logits are from the pipeline's as a share of the largest."""
        logits = formats.in_batches(run, self.test.images)
        otherwise = int(np.sum(logits.argmax(axis=1) != self.logits.argmax(axis=1)))
        images = formats.scaled(self.test.images[:BATCH])
        times = formats.latency(run, images[:1]), formats.latency(run, images)
        largest = np.abs(self.logits).max() or 1.0  # all are 0 where a layer is empty
        distance = float(np.abs(logits - self.logits).max() / largest)
        return Row(title, file, *sizes, self.accuracy(logits), otherwise, *times), distance


def _check_shapes(ticket: Ticket, variables: dict[str, Any]) -> None:
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    for weights in (ticket.weights, ticket.dense):
        if {n: w.shape for n, w in weights.items()} != shapes:
            raise LotteryError(
                f"{ticket.source}: not of the model and the dataset in params.yaml (model.name, model.width, data); "
                "`dvc repro` makes it anew"
            )


def _write_formats(
    folder: Path, names: list[str], network: formats.Network, reference: Reference
) -> tuple[list[Row], float | None]:
    """The lines of the table, and how far the logits of the float32 files are from the pipeline's, where there are any."""
    rows, distances = [], []
    for name in names:
        chosen = formats.FORMATS[name]
        path = folder / chosen.file
        try:
            with formats.quiet():
                chosen.write(network, path)
                row, distance = reference.row(
                    chosen.title, chosen.file, formats.sizes(path), chosen.read(path)
                )
        except (LotteryError, OSError):
            raise
        except Exception as error:  # converters raise nearly anything
            why = f"{type(error).__name__}: {_first_line(error)}"
            raise LotteryError(
                f"--formats {name}: cannot hold {network.facts['model']} ({why}); leave it out"
            ) from error
        rows.append(row)
        if chosen.quantised:
            continue
        if not distance <= ROUNDING["float32"]:  # NaN is refused too
            raise LotteryError(
                f"{chosen.file}: does not agree with the pipeline's network: test accuracy {row.test_accuracy:.2%} instead of "
                f"{reference.accuracy(reference.logits):.2%}, logits {distance:.1e} of the largest away; "
                f"accepted: {ROUNDING['float32']:g}"
            )
        distances.append(distance)
    return rows, max(distances, default=None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def check_out(out: Path) -> Path:
    """The folder to write; LotteryError where it holds anything but an earlier export."""
    out = out.resolve()
    if (
        out.exists()
        and not (out / FACTS).exists()
        and not (out.is_dir() and not any(out.iterdir()))
    ):
        raise LotteryError(
            f"--out: got {out}, which is no earlier export; accepted: a new or empty folder, or an export"
        )
    return out


def main(arguments: list[str] | None = None) -> None:
    """``python -m lottery export``: a user's mistake ends it with plain lines and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m lottery export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of `seeds` in params.yaml; by default the first"
    )
    parser.add_argument(
        "--round",
        type=int,
        metavar="R",
        help="0: the dense network; by default the ticket best by validation, else the last",
    )
    parser.add_argument(
        "--initial",
        action="store_true",
        help="before training: the mask on the initial (or rewound) weights",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("export"),
        metavar="DIR",
        help="folder to write; by default export",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=formats.FORMATS,
        default=list(formats.FORMATS),
        help="by default all",
    )
    parser.add_argument("--keep-dead-units", action="store_true", help="leave every layer its size")
    options = parser.parse_args(arguments)
    try:
        loaded = params.load()
        seed = loaded.seeds[0] if options.seed is None else options.seed
        if seed not in loaded.seeds:
            known = ", ".join(map(str, loaded.seeds))
            raise LotteryError(f"--seed: got {seed}; accepted: {known} (seeds in params.yaml)")
        round_ = choose_round(loaded, options.round)
        names = [name for name in formats.FORMATS if name in options.formats]
        out = check_out(options.out)
        formats.check_installed(names)
        ticket = read_ticket(loaded, seed, round_, initial=options.initial)
        print(f"export: {ticket.name}", flush=True)
        with formats.quiet():
            run.prepare(loaded.train.threads, 0)
        print(export(loaded, ticket, out, names, keep_dead_units=options.keep_dead_units))
        print(f"\nexport: written to {options.out}")
    except LotteryError as error:
        parser.exit(1, "".join(f"export: {line}\n" for line in str(error).splitlines()))
    except KeyboardInterrupt:
        print("export: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
