"""Reading and writing files: atomically, and with a named error for whatever is wrong with one."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_dir
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load, save

from lottery import code
from lottery.errors import LotteryError
from lottery.masks import Mask

Tensors = dict[str, np.ndarray]

DATASET = Path("data/dataset")
DENSE = Path("data/dense")
PRUNED = Path("data/pruned")
MASKS = Path("data/masks")
RETRAINED = Path("data/retrained")
REPORTS = Path("reports")
CHECKSUMS = "checksums.json"


def cache_folder() -> Path:
    """What all clones share: ``LOTTERY_CACHE``, or ``lottery`` in ``~/.cache`` (on Linux)."""
    return Path(os.environ.get("LOTTERY_CACHE") or user_cache_dir("lottery")).expanduser()


def broken(path: Path, why: str) -> LotteryError:
    """The error for a file that is not what a stage wrote."""
    again = "`dvc repro` (or `dvc checkout`) makes it again once it is deleted"
    return LotteryError(f"{path}: {why}; {again}")


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary file, fsync, rename.

    Raises LotteryError where the disk is full or the folder cannot be written; what was there
    before stays.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        why = f"{error.strerror}; what was there before is intact"
        raise LotteryError(f"{path}: cannot be written: {why}") from error


def inputs(paths: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """Of each file there or below, but modules and what is left over: time, size, inode.

    Raises LotteryError for a DVC repository in one of them, or a link to a folder: DVC does not
    look into them.
    """
    contents = {}
    for path in paths:
        names = [path] if os.path.isfile(path) else []
        for folder, folders, here in os.walk(path):  # as DVC, not into links
            odd = [f"{folder}: a DVC repository of its own"] * (".dvc" in folders)
            folders[:] = [name for name in folders if not code.left_over(name)]
            below = (os.path.join(folder, name) for name in folders)
            odd += [f"{name}: a link to a folder" for name in below if os.path.islink(name)]
            if odd:
                raise LotteryError(
                    f"{odd[0]}, whose changes `dvc repro` would not see; accepted in {path}/: "
                    "copies of files (`dvc import`, `dvc get`)"
                )
            names += [os.path.join(folder, name) for name in here if not code.left_over(name)]
        for name in names:
            if not name.endswith(".py") and os.path.exists(name):
                known = os.stat(name)
                contents[name] = (known.st_mtime_ns, known.st_size, known.st_ino)
    return contents


@contextlib.contextmanager
def folder_written_whole(path: Path, *, checksums: bool = False) -> Iterator[Path]:
    """A new, empty folder that takes the place of ``path`` when the block ends without an error.

    With ``checksums``, it gets a ``checksums.json`` of its CSV and JSON files, which are checked
    when they are read.
    """
    partial, before = (path.with_name(f".{path.name}.{state}") for state in ("partial", "before"))
    try:
        for leftover in (partial, before):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if checksums:
            files = sorted([*partial.glob("*.csv"), *partial.glob("*.json")])
            sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            write_json(partial / CHECKSUMS, sums)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, before)
        try:
            os.replace(partial, path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.replace(before, path)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise LotteryError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented, keys in the order that they have."""
    write(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; LotteryError where it is missing or not one."""
    try:
        return json.loads(read(path))
    except ValueError as error:
        raise broken(path, f"not valid JSON: {error}") from None


def read(path: Path) -> bytes:
    """A file's content; LotteryError where it is missing or not as its ``checksums.json`` says."""
    try:
        content = path.read_bytes()
        checksums = path.with_name(CHECKSUMS)
        if path != checksums and checksums.exists():
            expected, actual = read_json(checksums), hashlib.sha256(content).hexdigest()
            if not isinstance(expected, dict) or expected.get(path.name, actual) != actual:
                raise broken(path, f"its sha256 is not the one in {checksums.name}")
        return content
    except FileNotFoundError:
        raise LotteryError(f"{path}: not there; `dvc repro` makes it") from None
    except OSError as error:
        raise LotteryError(f"{path}: cannot be read: {error.strerror}") from None


def tensors_to_bytes(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file with, in its metadata, the facts (JSON), the tensors' order and a checksum
    of everything.

    The order is part of the content: it is that of a network's layers.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    content = {"facts": facts, "names": list(arrays), "sha256": _checksum(arrays, facts)}
    # one key: the order of several would be random
    return save(arrays, metadata={"lottery": json.dumps(content)})


def tensors_from_bytes(content: bytes) -> tuple[Tensors, dict[str, Any]]:
    """The inverse; raises ValueError where the content is not what was written."""
    try:
        deserialize(content)  # checks the header, names, types and offsets
        loaded = load(content)  # in an order that is random
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        written = json.loads(header["__metadata__"]["lottery"])
        facts, checksum = written["facts"], written["sha256"]
        tensors = {name: loaded[name] for name in written["names"]}
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"not a tensor file of this project, or damaged ({why})") from None
    if checksum != _checksum(tensors, facts):
        raise ValueError("damaged: the checksum does not match the content")
    return tensors, facts


def _checksum(tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes arrays and facts that JSON can hold; both keep their order."""
    write(path, tensors_to_bytes(tensors, facts))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The arrays and facts of a file; LotteryError where it is missing or damaged."""
    try:
        return tensors_from_bytes(read(path))
    except ValueError as error:
        raise broken(path, str(error)) from None


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the files of a seed lie."""
    return folder / f"seed-{seed}"


def round_file(folder: Path, seed: int, round_: int) -> Path:
    """The file of a seed and pruning round."""
    return seed_folder(folder, seed) / f"round-{round_:02d}.safetensors"


def write_mask(path: Path, mask: Mask, facts: Mapping[str, Any]) -> None:
    """A mask alone: packed bits by layer, the layers' shapes among the facts."""
    write_tensors(path, mask.pack(), {**facts, "shapes": mask.shapes})


def read_mask(path: Path) -> tuple[Mask, dict[str, Any]]:
    """A mask and its facts; LotteryError where the file is missing, damaged or holds none."""
    bits, facts = read_tensors(path)
    return _unpack(path, bits, facts), facts


def write_masked_weights(
    path: Path, weights: Tensors, mask: Mask, facts: Mapping[str, Any]
) -> None:
    """Weights under a mask: ``<name>/mask`` bits and ``<name>/survivors``, the rest as it is."""
    tensors: Tensors = {f"{name}/mask": bits for name, bits in mask.pack().items()}
    for name, value in weights.items():
        if name in mask.layers:
            tensors[f"{name}/survivors"] = value[mask.layers[name]]
        else:
            tensors[name] = value
    write_tensors(path, tensors, {**facts, "shapes": mask.shapes})


def read_masked_weights(path: Path) -> tuple[Tensors, Mask, dict[str, Any]]:
    """Weights (0 where pruned, in the order that they were written in), their mask and facts."""
    tensors, facts = read_tensors(path)
    bits = {name.removesuffix("/mask"): t for name, t in tensors.items() if name.endswith("/mask")}
    mask = _unpack(path, bits, facts)
    weights: Tensors = {}
    try:
        for stored, value in tensors.items():
            name = stored.removesuffix("/survivors")
            if name != stored:
                weights[name] = np.zeros(mask.layers[name].shape, np.float32)
                weights[name][mask.layers[name]] = value
            elif not name.endswith("/mask"):
                weights[name] = value
    except (KeyError, ValueError) as error:
        raise broken(path, f"the survivors do not fit the mask ({error})") from None
    if not mask.layers.keys() <= weights.keys():
        raise broken(path, "lacks the survivors of a layer")
    return weights, mask, facts


def _unpack(path: Path, bits: Tensors, facts: dict[str, Any]) -> Mask:
    try:
        return Mask.unpack(bits, {name: tuple(shape) for name, shape in facts["shapes"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(path, f"holds no mask ({error})") from None
