"""Files from the network, into a cache that all clones share, keyed by sha256.

A download goes to a temporary file in the cache, under a limit of size and time; its sha256 is compared
before anything opens it. A partial download is kept and continued, at another mirror too: whether the
pieces fit, the sha256 says.
"""

import contextlib
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from lottery.errors import LotteryError

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""How long a server may be silent."""
SLOW_SECONDS, SLOW_BYTES = 60.0, 64 * 1024
"""A body that brings fewer bytes in this time counts as stalled."""
ATTEMPTS = 3
"""At each mirror."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the third."""
REDIRECTS = 5
CHUNK = 2**18


class _Failed(Exception):
    """One attempt at one mirror: why, whether another may succeed, whether what has arrived is worthless."""

    def __init__(self, why: str, *, again: bool = True, drop: bool = False):
        super().__init__(why)
        self.again, self.drop = again, drop


class _Body(NamedTuple):
    read: Callable[[int], bytes]  # of a server or file, as it sends it; empty at the end
    start: int  # the position of its first byte in the file
    total: int | None  # bytes of the whole file, where that is known


def cache_folder() -> Path:
    """``LOTTERY_CACHE``, or ``lottery`` in the user's cache folder (``XDG_CACHE_HOME``, by default ``~/.cache``)."""
    given = os.environ.get("LOTTERY_CACHE")
    try:
        if given:
            return Path(given).expanduser()
        user = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (user if user.is_absolute() else Path.home() / ".cache") / "lottery"
    except RuntimeError as error:
        raise LotteryError(f"no cache folder: {error}; set LOTTERY_CACHE to a folder") from None


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(url: str) -> Path:
    """The path of a ``file://`` URL. Raises LotteryError where it is another machine's."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise LotteryError(
            f"{url}: a file on another machine; accepted: file:///path, or a path alone"
        )
    return Path(url2pathname(unquote(parts.path)))


def without_credentials(url: str) -> str:
    """The URL without a user name and password, for messages and results."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url)


def pinned(name: str, urls: Sequence[str], sha256: str, most: int) -> Path:
    """The file with this sha256, of at most ``most`` bytes: from the cache, or from the first mirror that has it.

    Two processes that want the same file download it once. Raises LotteryError that names every mirror and
    what went wrong there.
    """
    with _cache() as folder:
        path = folder / sha256
        if _is_whole(path, sha256):
            return path
        with _alone(folder / f"{sha256}.lock", name):
            if not _is_whole(path, sha256):  # another process may have brought it meanwhile
                partial = folder / f"{sha256}.partial"
                if not _is_whole(partial, sha256):
                    _from_mirrors(name, urls, partial, most, sha256)
                os.replace(partial, path)
        return path


def unpinned(name: str, url: str, most: int) -> tuple[Path, str]:
    """A file of unknown sha256, downloaded each time, and its sha256."""
    with _cache() as folder, tempfile.TemporaryDirectory(prefix="unpinned-", dir=folder) as own:
        partial = Path(own) / "partial"
        _from_mirrors(name, [url], partial, most, None)
        sha256 = file_sha256(partial)
        os.replace(partial, folder / sha256)
        return folder / sha256, sha256


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise LotteryError(
            f"{folder}: the cache of downloads cannot be used: {error.strerror or error}; "
            "make room or mend it, or set LOTTERY_CACHE to another folder"
        ) from error


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"fetch: another process downloads {name}; waiting for it", file=sys.stderr, flush=True
        )
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _from_mirrors(
    name: str, urls: Sequence[str], partial: Path, most: int, sha256: str | None
) -> None:
    """Brings the file to ``partial``, whole and checked. The mirrors are tried in turn, then all again."""
    causes: dict[str, str] = {}
    remaining = list(dict.fromkeys(urls))
    for attempt in range(ATTEMPTS):
        if attempt and remaining:
            time.sleep(attempt * PAUSE_SECONDS)
        for url in tuple(remaining):
            try:
                _attempt(name, url, partial, most, sha256)
                return
            except _Failed as failed:
                causes[url] = str(failed) + (f" ({attempt + 1} attempts)" if attempt else "")
                if not failed.again:
                    remaining.remove(url)
                if (
                    failed.drop or sha256 is None
                ):  # without it, nothing tells whether pieces are of one file
                    partial.unlink(missing_ok=True)
    raise LotteryError(
        "\n".join(
            [
                f"{name} could not be downloaded:",
                *(f"  {without_credentials(url)}: {cause}" for url, cause in causes.items()),
                "try again later (what has arrived is kept), or bring the file here by other means and name it in "
                "params.yaml: data.source",
            ]
        )
    )


def _attempt(name: str, url: str, partial: Path, most: int, sha256: str | None) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    with _opened(url, have) as body:
        if body.total is not None and body.total > most:
            raise _Failed(
                f"would send {body.total:,} bytes, more than the {most:,} accepted", again=False
            )
        size = _receive(name, body, partial, most)
    if body.total is not None and size != body.total:
        raise _Failed(f"ended after {size:,} of {body.total:,} bytes", drop=size > body.total)
    if sha256 is not None and (found := file_sha256(partial)) != sha256:
        if body.start:
            raise _Failed(
                "what it added to the partial download does not fit; that was dropped", drop=True
            )
        raise _Failed(
            f"sent another file: sha256 {found}, expected {sha256}", again=False, drop=True
        )


def _receive(name: str, body: _Body, partial: Path, most: int) -> int:
    """Appends the body to what is there; the size afterwards."""
    size = body.start
    with (
        open(partial, "r+b" if body.start else "wb") as file,
        tqdm(
            total=body.total,
            initial=size,
            desc=f"fetch: {name}",
            unit="B",
            unit_scale=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):
        file.seek(size)
        file.truncate()
        since, received = time.monotonic(), 0
        while chunk := _next(body):
            size += len(chunk)
            received += len(chunk)
            if size > most:
                raise _Failed(
                    f"sends more than the {most:,} bytes accepted", again=body.start > 0, drop=True
                )
            file.write(chunk)
            bar.update(len(chunk))
            if time.monotonic() - since > SLOW_SECONDS:
                if received < SLOW_BYTES:
                    raise _Failed(f"stalled: {received:,} bytes in {SLOW_SECONDS:g} seconds")
                since, received = time.monotonic(), 0
        file.flush()
        os.fsync(file.fileno())
    return size


def _next(body: _Body) -> bytes:
    try:
        return body.read(CHUNK)
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise _Failed(_cause(error)) from None


@contextlib.contextmanager
def _opened(url: str, have: int) -> Iterator[_Body]:
    """The content from byte ``have`` on, or from the start where the server does not continue."""
    if url.lower().startswith("file:"):
        try:
            file = open(local_path(url), "rb")  # noqa: SIM115  # closed below; an error while writing is another one
        except OSError as error:
            raise _Failed(error.strerror or str(error), again=False) from None
        with file:
            yield _Body(file.read, 0, os.fstat(file.fileno()).st_size)
        return
    with _Session() as session, _response(session, url, have) as response:
        yield _body(response, have)


class _Session(requests.Session):
    """Follows no redirect by itself: it would read the body of each, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _response(session: requests.Session, url: str, have: int) -> requests.Response:
    """The response after redirects, its body unread."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "lottery"}
    if have:
        headers["Range"] = f"bytes={have}-"
    for _ in range(REDIRECTS + 1):
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise _Failed(
                    f"{without_credentials(url)!r} is no http or https address", again=False
                )
            response = session.get(
                url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)
            )
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            response.close()
            target = urljoin(url, response.headers.get("location", ""))
            if parts.scheme == "https" and urlsplit(target).scheme != "https":
                raise _Failed(
                    f"redirects from https to {without_credentials(target)!r}", again=False
                )
            url = target
        except ValueError:  # requests' InvalidURL is one too
            raise _Failed("not a valid URL, or redirects to none", again=False) from None
        except (
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
        ) as error:
            raise _Failed(_cause(error)) from None
    raise _Failed(f"more than {REDIRECTS} redirects", again=False)


def _body(response: requests.Response, have: int) -> _Body:
    code = response.status_code
    length = response.headers.get("content-length", "")
    rest = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if code == 200:
        return _Body(_reader(response), 0, rest)
    if code == 206 and have:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/(\*|[0-9]{1,18})",
            response.headers.get("content-range", ""),
        )
        if found and int(found[1]) == have:
            total = None if found[2] == "*" else int(found[2])
            return _Body(_reader(response), have, total if rest is None else have + rest)
    if code in (206, 416):
        raise _Failed("did not continue the partial download; that was dropped", drop=True)
    raise _Failed(
        f"HTTP status {code} {response.reason}", again=code >= 500 or code in (408, 425, 429)
    )


def _reader(response: requests.Response) -> Callable[[int], bytes]:
    """The bytes as they arrive and as they are: never unpacked, so that they cannot grow."""
    return lambda size: response.raw.read1(size, decode_content=False)


def _cause(error: BaseException) -> str:
    """A network error in a few words: that of the innermost error, which the others wrap."""
    chain = [error]
    while (within := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(within)
    kinds = tuple(type(one) for one in chain)
    if (
        urllib3.exceptions.ConnectTimeoutError in kinds
    ):  # itself: a connection that is refused is of a kind of it
        return f"no connection within {CONNECT_SECONDS:g} seconds"
    if any(issubclass(kind, (urllib3.exceptions.ReadTimeoutError, TimeoutError)) for kind in kinds):
        return f"silent for {READ_SECONDS:g} seconds"
    if any(issubclass(kind, urllib3.exceptions.NameResolutionError) for kind in kinds):
        return "its name cannot be resolved; is there a network?"
    return f"{kinds[-1].__name__}: {chain[-1]}"
