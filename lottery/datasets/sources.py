"""Where a dataset comes from: its public archive, or the URL, file or folder that ``data.source`` names."""

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from lottery.datasets import download
from lottery.datasets.archives import shown
from lottery.datasets.originals import FILES
from lottery.errors import LotteryError
from lottery.params import Data

MOST_BYTES = 8 * 2**30
"""Of a file that ``data.source`` names."""


class Source(NamedTuple):
    """Files on this machine, and what is recorded of where they came from."""

    name: str  # the file's name without its folder, or the URL
    paths: dict[str, Path]  # by the name of the file
    sha256: dict[str, str]  # the same; empty for a folder


def locate(data: Data) -> Source:
    """Downloads the source unless it is local, and compares the sha256 where one is expected."""
    if data.source is None:
        return _original(data)
    try:
        scheme = urlsplit(data.source).scheme if "://" in data.source else ""
    except ValueError as error:
        raise LotteryError(f"data.source: {data.source}: not a valid URL: {error}") from None
    if scheme in ("http", "https"):
        return _downloaded(data.source, data.sha256)
    if scheme not in ("", "file"):
        raise LotteryError(
            f"data.source: got {data.source!r}; accepted: an http, https or file URL, a file or a folder"
        )
    path = download.local_path(data.source) if scheme else Path(data.source)
    return _local(path, data.source, data.sha256)


def _original(data: Data) -> Source:
    files = FILES[data.name]
    if data.sha256 is not None and [data.sha256] != [file.sha256 for file in files]:
        accepted = (
            f"null or {files[0].sha256}"
            if len(files) == 1
            else f"null: its {len(files)} files have one each"
        )
        raise LotteryError(
            f"data.sha256: got {data.sha256}; accepted: {accepted}, with data.name {data.name} and data.source null"
        )
    return Source(
        files[0].urls[0] if len(files) == 1 else files[0].urls[0].rpartition("/")[0] + "/",
        {
            file.name: download.pinned(file.name, file.urls, file.sha256, file.most)
            for file in files
        },
        {file.name: file.sha256 for file in files},
    )


def _downloaded(url: str, sha256: str | None) -> Source:
    name = shown(urlsplit(url).path.rpartition("/")[2]) or "the file"
    if sha256 is None:
        path, found = download.unpinned(name, url, MOST_BYTES)
    else:
        path, found = download.pinned(name, [url], sha256, MOST_BYTES), sha256
    return Source(download.without_credentials(url), {name: path}, {name: found})


def _local(path: Path, source: str, sha256: str | None) -> Source:
    try:
        path = path.expanduser()
        name = shown(path.resolve().name)
        if path.is_dir():
            if sha256 is not None:
                raise LotteryError(
                    f"data.sha256: got {sha256}; accepted: null, as {source} is a folder; a file has a sha256"
                )
            return Source(name, {name: path}, {})
        if not path.is_file():
            state = "neither a file nor a folder" if path.exists() else "not there"
            raise LotteryError(
                f"data.source: {source}: {state}; accepted: a URL, a file or a folder, relative to {Path.cwd()}"
            )
        if path.stat().st_size > MOST_BYTES:
            raise LotteryError(
                f"data.source: {source}: larger than the {MOST_BYTES:,} bytes accepted"
            )
        found = download.file_sha256(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise LotteryError(
            f"data.source: {source}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if sha256 not in (None, found):
        raise LotteryError(
            f"data.source: {source} has sha256 {found}, expected {sha256}; obtain it again, or correct data.sha256"
        )
    return Source(name, {name: path}, {name: found})
