"""Masks from elsewhere (``retrain.masks``): published ones, or what another program made.

A folder has ``seed-N/round-NN.npz`` (or ``.safetensors``) for each seed and round, and may have
``seed-N/history.csv.gz`` of the rounds that found them, with one ``environment.json`` and the
``params.yaml`` that they were found with; a file is the mask of every seed at the round
``prune.rounds``. Either format holds bool arrays named as the
prunable weights (``dense/kernel``) or as their layers (``dense``).
"""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from lottery.artifacts import files, tables
from lottery.artifacts.tables import Record
from lottery.datasets.pinning import covering
from lottery.errors import LotteryError
from lottery.masks import Mask
from lottery.params import Params, Prune, load
from lottery.params.reading import read_yaml
from lottery.tickets import patterns

WHERE = "params.yaml: retrain.masks"
STAGES = {"fetch", "train_dense", "prune", "extract_masks", "retrain", "report"}
HISTORY, ENVIRONMENT = "history.csv.gz", "environment.json"  # of the trainings that found masks
FILE = re.compile(r"round-(\d+)\.(npz|safetensors)")


class Given(NamedTuple):
    """What ``retrain.masks`` has of a seed: masks and, where it tells them, histories by round."""

    masks: Mapping[int, Mask]
    records: Mapping[int, Record]


def check(params: Params) -> None:
    """Raises LotteryError where ``retrain.masks`` is not there or lacks a seed or round, or where
    DVC does not watch it. A stage of one's own may yet make them.
    """
    path, complete = _watched(params)
    for seed in params.seeds if complete else ():
        _of_rounds(params, path, seed)


def _watched(params: Params) -> tuple[Path, bool]:
    """``retrain.masks``, and whether no stage of one's own may yet make it.

    Raises LotteryError where it is not there, though none may, or DVC does not watch it.
    """
    path = Path(params.retrain.masks or "").expanduser()
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    complete = stages.keys() <= STAGES
    if complete and not path.exists():
        raise LotteryError(f"{WHERE}: got {path}, which is not there; accepted: a file or folder")
    if not covering(path, stages["prune"]["deps"]):
        raise LotteryError(
            f"{WHERE}: got {path}, whose changes nobody would see; accepted: a file or folder in "
            f"tickets/, or one that is a dependency: add `- {path}` to the deps of prune in "
            "dvc.yaml"
        )
    return path, complete


def _of_rounds(params: Params, path: Path, seed: int) -> dict[int, Path]:
    """The files of a seed's masks by round; LotteryError where one is missing that is asked for."""
    rounds = params.prune.rounds
    if path.is_file():
        return {rounds: path}
    names = sorted(files.seed_folder(path, seed).glob("[!.]*"))
    matched = [(FILE.fullmatch(name.name), name) for name in names]
    by_round = {int(m[1]): name for m, name in matched if m}
    unnamed = [n for m, n in matched if not m and n.suffix in (".npz", ".safetensors")]
    if other := unnamed + [n for m, n in matched if m and n != by_round[int(m[1])]]:
        raise LotteryError(f"{WHERE}: {other[0]}: accepted: round-NN.npz, one of each round")
    last = max(by_round, default=0)
    missing = [r for r in params.retrain_rounds() if r not in by_round and r <= last]
    if missing or not files.seed_folder(path, seed).is_dir():
        asked = ", ".join(map(str, missing or params.retrain_rounds()))
        raise LotteryError(
            f"{WHERE}: {path} has no mask of seed {seed}, round {asked}; accepted: seeds and "
            "retrain.rounds that it has, as seed-N/round-NN.npz"
        )
    history = files.seed_folder(path, seed) / HISTORY
    if history.exists() and not (path / ENVIRONMENT).exists():
        raise LotteryError(f"{WHERE}: {history}: accepted: beside {path / ENVIRONMENT} only")
    return {number: name for number, name in by_round.items() if number <= rounds}


def read(params: Params, seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Given:
    """The masks of a seed by round; none where ``retrain.masks`` is null, or the seed's folder has
    none yet.

    Args:
        shapes: of the network's prunable weights, by name, in their order.

    Raises LotteryError where a mask is missing that ``retrain.rounds`` asks for, cannot be read or
    does not fit the network.
    """
    if params.retrain.masks is None:
        return Given({}, {})
    path, _ = _watched(params)
    rounds = _of_rounds(params, path, seed)
    recipe, by = path / "params.yaml", params.prune.criterion
    match read_yaml(recipe) if recipe.exists() else None:  # of another program's it says nothing
        case {"prune": {"criterion": by}}:
            pass
        case {"prune": {"rates": _}}:
            by = Prune.model_fields["criterion"].default
    if by != params.prune.criterion:
        raise LotteryError(
            f"params.yaml: prune.criterion: got {params.prune.criterion}; accepted: {by}, by which "
            f"the masks of {path} were found: the claim that is tested depends on it"
        )
    masks = {number: _fitting(read_file(name), shapes, name) for number, name in rounds.items()}
    for number, mask in masks.items():
        if not patterns.holds(mask, params.prune.pattern):
            raise LotteryError(
                f"params.yaml: prune.pattern: got {params.prune.pattern}; accepted: weight, as the "
                f"mask in {rounds[number]} is of no other pattern"
            )
    return Given(masks, _records(params, path, seed, masks))


def round_file(folder: Path, seed: int, round_: int) -> Path:
    """Where a folder has the mask of a seed and round."""
    return files.round_file(folder, seed, round_).with_suffix(".npz")


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz or safetensors file; LotteryError where it is neither."""
    try:
        if path.suffix not in (".npz", ".safetensors"):
            raise ValueError(f"got {path.suffix or 'no ending'}")
        if path.suffix == ".safetensors":
            return safetensors.numpy.load_file(path)
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        why, accepted = getattr(error, "strerror", None) or error, "an npz or safetensors file"
        raise LotteryError(f"{WHERE}: {path}: {why}; accepted: {accepted} of bool arrays") from None


def write_file(path: Path, mask: Mask) -> None:
    """A mask as ``retrain.masks`` takes it; the same bytes for the same mask."""
    content = io.BytesIO()
    np.savez_compressed(content, **mask.layers)  # type: ignore[arg-type]
    files.write(path, content.getvalue())


def _fitting(
    arrays: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> Mask:
    layers = {f"{n}/kernel" if f"{n}/kernel" in shapes else n: keep for n, keep in arrays.items()}
    if len(layers) < len(arrays):
        twice = next(name for name in arrays if f"{name}/kernel" in arrays)
        raise LotteryError(f"{WHERE}: {path}: {twice}: there twice, also as {twice}/kernel")
    if wrong := sorted(layers.keys() ^ shapes.keys()):
        raise LotteryError(
            f"{WHERE}: {path}: {', '.join(wrong)}: in the file or in the network, but not in both; "
            f"accepted: {', '.join(shapes)}"
        )
    for name, shape in shapes.items():
        keep = layers[name]
        if keep.dtype != np.bool_ or keep.shape != shape or not keep.any():
            kept = f"{np.count_nonzero(keep):,} of its values not zero"
            kept += ", transposed, as PyTorch has it" * (keep.shape == shape[::-1] != shape)
            raise LotteryError(
                f"{WHERE}: {path}: {name}: got {keep.dtype} {list(keep.shape)}, {kept}; "
                f"accepted: bool {list(shape)}, at least one of them true"
            )
    return Mask({name: layers[name] for name in shapes})


def of_same_search(recipe: Path, params: Params) -> bool:
    """Whether a file has these parameters, as far as they determine how masks are found.

    LotteryError where it has none.
    """
    sections = {"data", "model", "train", "prune"}
    beside = {"data": {"source", "sha256"}, "prune": {"rounds"}}
    theirs, ours = (p.model_dump(include=sections, exclude=beside) for p in (load(recipe), params))
    return theirs == ours


def _records(params: Params, path: Path, seed: int, masks: Mapping[int, Mask]) -> dict[int, Record]:
    """What the folder tells of the trainings that found the masks, if they were those of ``params``
    (by its ``params.yaml``): of others they are no part of this experiment.
    """
    import pandas as pd

    history = files.seed_folder(path, seed) / HISTORY
    recipe = path / "params.yaml"
    if not (history.exists() and recipe.exists() and of_same_search(recipe, params)):
        return {}
    table = pd.read_csv(history)
    if others := sorted({*table.get("seed", ())} - {seed}):
        raise LotteryError(f"{WHERE}: {history}: got seed {others[0]}; accepted: {seed}")
    (environment,) = files.read_json(path / ENVIRONMENT)
    records = {}
    for number, mask in masks.items():
        rows = table[(table["variant"] == "pruning") & (table["round"] == number)]
        if len(rows):
            history = rows[[*tables.HISTORY]].to_dict("list")
            records[number] = Record(
                seed, "pruning", number, mask.weights_remaining, history, environment
            )
    return records
