"""Where a dataset comes from: its public archive, or the URL, file or folder ``data.source`` names.

Whatever it is, it becomes a folder on disk: a download goes to the cache, an archive is unpacked
into a temporary folder.
"""

import contextlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests

from lottery.artifacts import files
from lottery.datasets.archives import MOST_BYTES, say, shown, unpack
from lottery.datasets.catalogue import DATASETS, Known
from lottery.errors import LotteryError
from lottery.params import Data

TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""
DEEPEST = 5
"""Levels of a folder that are looked at: ``train/<class>/<image>`` below two folders."""


class Source(NamedTuple):
    """A folder on disk, and what is recorded of where it came from."""

    folder: Path
    name: str  # of the file or folder, without where it lies; or the URL, without secrets
    sha256: dict[str, str]  # of the files that were downloaded or unpacked, by their names
    where: str  # what messages call it


@contextlib.contextmanager
def opened(data: Data) -> Iterator[Source]:
    """The source, for as long as the block lasts.

    Raises LotteryError naming what cannot be downloaded, read or unpacked, or has another sha256
    than ``data.sha256``.
    """
    name = without_secrets(data.source or data.name)
    try:
        with tempfile.TemporaryDirectory(prefix="lottery-") as temporary:
            if data.source is None:
                yield _published(DATASETS[data.name], data.sha256, Path(temporary))
            else:
                yield _named(data.source, data.sha256, Path(temporary))
    except OSError as error:
        raise LotteryError(
            f"data.source: {shown(name)}: {error.strerror or error}: {error.filename or ''}; make "
            "it readable, or make room for what is unpacked (TMPDIR names the folder for that)"
        ) from None


def _published(known: Known, sha256: str | None, temporary: Path) -> Source:
    """The files of a dataset known by name: an archive, or several that are read as they are."""
    if sha256 not in (None, *known.files.values()):
        raise LotteryError(
            f"data.sha256: got {sha256}; accepted: null, or {known.title}'s own: "
            f"{', '.join(known.files.values())}"
        )
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
    is_download = source.startswith(("http://", "https://"))
    if is_download:
        path = download([source], sha256, files.cache_folder() if sha256 else temporary)
        name = without_secrets(source)
    else:
        path = _local_path(source)
        name = shown(path.resolve().name)
    where = f"data.source: {name}"
    if path.is_dir() and sha256 is None:
        return Source(path, name, {}, where)
    found = "none, as it is a folder" if path.is_dir() else pooch.file_hash(str(path))
    if sha256 not in (None, found):
        raise LotteryError(
            f"{where} has sha256 {found}, expected {sha256}; obtain it again, or correct "
            "data.sha256"
        )
    if is_download and sha256 is None:
        say(f"{where}: it is not pinned: set data.sha256 to {found}, to be told where it changes")
    folder = temporary / "unpacked"
    folder.mkdir()
    unpack(path, folder, where)
    return Source(folder, name, {_last_part(name): found}, where)


def _local_path(source: str) -> Path:
    """A file or a folder. Raises LotteryError where it is neither, or would be overwritten."""
    try:
        parts = urlsplit(source)
        if "://" in source and (parts.scheme != "file" or parts.netloc not in ("", "localhost")):
            raise ValueError("neither a path nor a URL that can be read")
        path = Path(unquote(parts.path) if "://" in source else source).expanduser()
        if not path.is_dir() and not path.is_file():
            raise ValueError("neither a file nor a folder" if path.exists() else "not there")
    except (ValueError, RuntimeError) as error:  # of a null character, an unknown ~user too
        raise LotteryError(
            f"data.source: {shown(without_secrets(source))}: {error}; accepted: an http, https or "
            f"file URL, a file or a folder, relative to {Path.cwd()}"
        ) from None
    for folder in (files.DATASET.parent, files.REPORTS):
        for place in (Path(os.path.abspath(path)), path.resolve()):
            if place.is_relative_to(folder.resolve()):
                raise LotteryError(
                    f"data.source: {source}: lies in {folder}/, where stages replace what they "
                    f"find; move it out, to {Path.cwd() / 'my-images'} for example"
                )
    return path


def download(urls: Sequence[str], sha256: str | None, folder: Path) -> Path:
    """The file of this sha256: from the folder, or from the first of these URLs that has it.

    Raises LotteryError that names every URL and what went wrong there.
    """
    pooch.get_logger().setLevel(logging.WARNING)
    name, causes = sha256 or "download", ""
    for url in urls:
        try:
            return Path(pooch.retrieve(url, sha256, name, folder, downloader=_download))
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


def _download(url: str, path: str, _: Any) -> None:
    """What pooch calls to download: over http, the bytes as they are, up to a limit, with a bar."""
    get = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=2**16,
        timeout=TIMEOUT_SECONDS,
        headers={"Accept-Encoding": "identity"},
    )
    with _Bounded(io.FileIO(path, "w")) as file:
        get(url, file, None)


class _Bounded(io.BufferedWriter):
    """A file that does not grow beyond a limit."""

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > MOST_BYTES:
            raise ValueError(f"sends more than the {MOST_BYTES:,} bytes accepted")
        return super().write(content)


def without_secrets(url: str) -> str:
    """A URL for messages and results: without user name, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _last_part(url: str) -> str:
    return unquote(without_secrets(url).rpartition("/")[2])


def manifest(path: Path, depth: int = DEEPEST) -> dict[str, list[int]]:
    """Size in bytes and time of modification in ns of each file in a folder, or of one file.

    By relative names, sorted, without what systems leave in folders (``.DS_Store``); an empty
    folder is a name that ends with ``/``. Raises LotteryError for a broken link, a device, or a
    name that is not plain text.
    """
    if path.is_file():
        return {path.name: [path.stat().st_size, path.stat().st_mtime_ns]}
    found: dict[str, list[int]] = {}
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in ("__MACOSX", "Thumbs.db", "desktop.ini"):
            continue
        if not entry.name.isprintable() or not (entry.is_dir() or entry.is_file()):
            raise LotteryError(
                f"data.source: {shown(entry.name)} in {shown(path.name)}/ is a broken link, a "
                "device, or has a name that is not plain text; remove or rename it"
            )
        if entry.is_file():
            found[entry.name] = [entry.stat().st_size, entry.stat().st_mtime_ns]
        elif depth > 1:
            below = manifest(Path(entry.path), depth - 1) or {"": [0, 0]}
            found |= {f"{entry.name}/{name}": stamp for name, stamp in below.items()}
    return found
