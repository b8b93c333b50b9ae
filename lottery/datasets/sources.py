"""Where a dataset comes from: its public archive, or the URL, file or folder ``data.source`` names.

Whatever it is, it becomes a folder on disk: a download goes to the cache, an archive is unpacked
into a temporary folder.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests
from tqdm import tqdm

from lottery.artifacts import files
from lottery.code import left_over
from lottery.datasets.archives import MOST_BYTES, shown, unpack
from lottery.errors import LotteryError, say, without_secrets
from lottery.params import Data
from lottery.params.catalogue import DATASETS, Known

OWN = files.DATASET.parent / "own"
"""For sources of one's own: ``fetch`` depends on it, no stage writes there."""
VERSION = ("ETag", "Last-Modified")  # what servers say of a file that changes with its content
TIMEOUT_SECONDS = 30.0  # how long a server may be silent


class Source(NamedTuple):
    """A folder on disk, and what is recorded of where it came from."""

    folder: Path
    name: str  # of the file or folder, without where it lies; or the URL, without secrets
    sha256: dict[str, str]  # of the files that were downloaded or unpacked, by their names
    context: str  # what messages call it
    version: Mapping[str, str] = {}  # VERSION of a download that is not pinned


@contextlib.contextmanager
def opened(data: Data) -> Iterator[Source]:
    """The source, while the block lasts; LotteryError: not to be had, or not of ``data.sha256``."""
    name = without_secrets(data.source or data.name)
    try:
        with tempfile.TemporaryDirectory(prefix="lottery-") as temporary:
            if data.source is None:
                yield _published(DATASETS[data.name], data.sha256, Path(temporary))
            else:
                yield _named(data.source, data.sha256, Path(temporary))
    except OSError as error:
        why = f"{error.strerror or error}: {error.filename or ''}"
        way = "make it readable, or make room for what is unpacked, in the folder that TMPDIR names"
        raise LotteryError(f"data.source: {shown(name)}: {why}; {way}") from None


def _published(known: Known, sha256: str | None, temporary: Path) -> Source:
    """The files of a dataset known by name: an archive, or several that are read as they are."""
    if sha256 not in (None, *known.files.values()):
        own = f"{known.title}'s own: {', '.join(known.files.values())}"
        raise LotteryError(f"data.sha256: got {sha256}; accepted: null, or {own}")
    for name, expected in known.files.items():
        urls = [f"{mirror}/{name}" for mirror in known.mirrors]
        path = download(urls, expected, files.cache_folder())
        if len(known.files) == 1:
            unpack(path, temporary, name)
        else:
            (temporary / name).symlink_to(path)
    url = f"{known.mirrors[0]}/{name if len(known.files) == 1 else ''}"
    return Source(temporary, url, dict(known.files), url)


def _named(source: str, sha256: str | None, temporary: Path) -> Source:
    """What ``data.source`` names."""
    version: dict[str, str] = {}
    given = local(source)
    if given is None:
        path = download([source], sha256, files.cache_folder() if sha256 else temporary, version)
        name = without_secrets(source)
    else:
        path = usable(given, source)
        name = shown(path.resolve().name)
    context = f"data.source: {name}"
    if path.is_dir() and sha256 is None:
        return Source(path, name, {}, context)
    actual = "none, as it is a folder" if path.is_dir() else pooch.file_hash(str(path))
    if sha256 not in (None, actual):
        way = "obtain it again, or correct data.sha256"
        raise LotteryError(f"{context} has sha256 {actual}, expected {sha256}; {way}")
    if given is None and sha256 is None:
        pin = f"it is not pinned: set data.sha256 to {actual}, to be told where it changes"
        say(f"fetch: {context}: {pin}", sys.stderr)
    folder = temporary / "unpacked"
    folder.mkdir()
    if name.lower().endswith(".safetensors"):
        (folder / _last_part(name)).symlink_to(path.resolve())
    else:
        unpack(path, folder, context)
    return Source(folder, name, {_last_part(name): actual}, context, {} if sha256 else version)


def local(source: str | None) -> Path | None:
    """The path that is named, there or not; None of a download, LotteryError of another URL."""
    if source is None or source.startswith(("http://", "https://")):
        return None
    try:
        parts, is_path = urlsplit(source), "://" not in source
        if not is_path and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
            raise ValueError("neither a path nor a URL that can be read")
        if "\0" in source:
            raise ValueError("not there")
        return Path(source if is_path else unquote(parts.path)).expanduser()
    except (ValueError, RuntimeError) as error:  # of an unknown ~user too
        raise _unusable(source, str(error)) from None


def _unusable(source: str, why: str) -> LotteryError:
    return LotteryError(
        f"data.source: {shown(without_secrets(source))}: {why}; accepted: an http, https or "
        f"file URL, a file or a folder, relative to {Path.cwd()}"
    )


def usable(path: Path, source: str) -> Path:
    """Raises LotteryError where it is neither a file nor a folder, or would be overwritten."""
    if not path.is_dir() and not path.is_file():
        raise _unusable(source, "neither a file nor a folder" if path.exists() else "not there")
    for folder in (files.DATASET.parent, files.REPORTS):
        for place in (Path(os.path.abspath(path)), path.resolve()):
            if place.is_relative_to(folder.resolve()) and not place.is_relative_to(OWN.absolute()):
                raise LotteryError(
                    f"data.source: {source}: lies in {folder}/, where stages replace what they "
                    f"find; move it out, to {OWN}/ for example"
                )
    return path


def download(
    urls: Sequence[str], sha256: str | None, folder: Path, version: dict[str, str] | None = None
) -> Path:
    """The file of this sha256: from the folder, or from the first of these URLs that has it.

    ``version`` gets VERSION of a download. Raises LotteryError that names every URL and what went
    wrong there.
    """
    pooch.get_logger().setLevel(logging.WARNING)
    name, causes = sha256 or "download", ""
    load = partial(_download, {} if version is None else version)
    for url in urls:
        try:
            return Path(pooch.retrieve(url, sha256, name, folder, downloader=load))
        except (requests.RequestException, ValueError) as error:
            cause: BaseException = error
            while (inner := cause.__cause__ or cause.__context__) is not None:
                cause = inner  # the libraries wrap it several times
            text = f"{type(cause).__name__}: {cause}".replace(url, "").partition("?")[0]
            causes += f"  {without_secrets(url)}: {text}\n"
        except OSError as error:
            raise LotteryError(
                f"{folder}: the cache of downloads cannot be used: {error.strerror or error}; make "
                "room or mend it, or set LOTTERY_CACHE to another folder"
            ) from None
    raise LotteryError(
        f"{shown(_last_part(urls[0]))} could not be downloaded:\n{causes}try again later, or bring "
        "the file here by other means and name it in params.yaml: data.source"
    )


def _download(version: dict[str, str], url: str, path: str, _: Any) -> None:
    """What pooch calls to download: over http, the bytes as they are, up to a limit, with a bar."""
    whole = {"Accept-Encoding": "identity"}
    with requests.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=whole) as answer:
        answer.raise_for_status()
        version.update({name: answer.headers[name] for name in VERSION if name in answer.headers})
        size = int(answer.headers.get("Content-Length", 0)) or None
        with (
            open(path, "wb") as file,
            tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for content in answer.iter_content(2**16):
                bar.update(file.write(content))
                if file.tell() > MOST_BYTES:
                    raise ValueError(f"sends more than the {MOST_BYTES:,} bytes accepted")


def _last_part(url: str) -> str:
    return unquote(without_secrets(url).rpartition("/")[2])


def file_names(folder: Path) -> list[str]:
    """The files below a folder, sorted, without what systems and editors leave there
    (``.DS_Store``, ``name~``), whose changes DVC does not see.

    Relative; an empty folder is a name that ends with ``/``. Raises LotteryError for a link that is
    broken or leads to a folder (DVC does not follow it), a device, or a name that is not plain
    text.
    """
    names = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if left_over(entry.name) or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if not entry.name.isprintable() or not (is_folder or entry.is_file()):
            raise LotteryError(
                f"data.source: {shown(entry.name)} in {shown(folder.name)}/ is a broken link, one "
                "to a folder, a device, or has a name that is not plain text; remove or rename it"
            )
        if not is_folder:
            names.append(entry.name)
        else:
            below = file_names(Path(entry.path)) or [""]
            names += [f"{entry.name}/{name}" for name in below]
    return names
