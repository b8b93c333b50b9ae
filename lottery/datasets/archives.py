"""A folder, a zip or a tar archive as one thing: the names in it, and their contents member by member.

An archive may come from anywhere, so it is never extracted, and what does not belong into a dataset is
refused: links, devices, absolute paths, ``..``, names that repeat, more or larger members than the limits,
content that does not match its declared size or checksum.
"""

import contextlib
import gzip
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, Self

from lottery.errors import LotteryError

MIB = 2**20
DEEPEST = 5
"""Levels of folders that are looked into below a local folder."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. The largest that is known here: CIFAR-100, of a member of 154 MB."""

    members: int = 200_000
    member_bytes: int = 256 * MIB
    total_bytes: int = 8192 * MIB
    ratio: int = 200  # of unpacked to packed bytes, beyond the first 64 MiB; images seldom pass 10

    def unpacked(self, packed: int) -> int:
        """Bytes that an archive of so many packed bytes may unpack to."""
        return min(self.total_bytes, max(64 * MIB, self.ratio * packed))


LIMITS = Limits()


class Tree(Protocol):
    """Files by their relative names, with ``/`` between the parts."""

    where: str  # what messages call it
    files: tuple[str, ...]
    folders: frozenset[str]

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Each wanted file's name and content, in any order."""


@contextlib.contextmanager
def open_tree(path: Path, where: str, limits: Limits = LIMITS) -> Iterator[Tree]:
    """Opens a folder, a zip, a tar or a tar.gz, told apart by its first bytes.

    Raises LotteryError, then or while it is read, for whatever is wrong with it.
    """
    if path.is_dir():
        yield _Folder(path, where, limits)
        return
    with contextlib.ExitStack() as stack:
        with _named(where):
            file = stack.enter_context(open(path, "rb"))
            start = file.read(265)
            file.seek(0)
        if start.startswith((b"PK\3\4", b"PK\5\6")):
            yield _Zip(file, where, limits)
        elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
            yield _Tar(file, where, limits, packed=start.startswith(b"\x1f\x8b"))
        else:
            raise LotteryError(f"{where}: neither a folder nor a zip, tar or tar.gz archive")


class Loose:
    """Files that lie anywhere, by the names given to them: a Tree."""

    def __init__(self, paths: dict[str, Path], where: str, limits: Limits = LIMITS):
        self.where, self.paths, self.limits = where, paths, limits
        self.files = tuple(paths)
        self.folders: frozenset[str] = frozenset()

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in wanted:
            with _named(f"{self.where}: {shown(name)}"), open(self.paths[name], "rb") as file:
                content = file.read(self.limits.member_bytes + 1)
            _check_size(self.where, name, len(content), self.limits)
            yield name, content


class _Folder(Loose):
    """A local folder. Links in it are followed: it is the user's own."""

    def __init__(self, path: Path, where: str, limits: Limits):
        found: dict[str, Path] = {}
        folders: set[str] = set()

        def look(folder: Path, prefix: str, depth: int) -> None:
            for entry in sorted(os.scandir(folder), key=lambda e: e.name):
                name = f"{prefix}{_plain(entry.name, where)}"
                if entry.is_dir():
                    folders.add(name)
                    if depth < DEEPEST and not is_hidden(name):
                        look(Path(entry.path), f"{name}/", depth + 1)
                elif entry.is_file():
                    found[name] = Path(entry.path)
                elif not is_hidden(name):
                    raise LotteryError(
                        f"{where}: {shown(name)} is neither a file nor a folder (a broken link?)"
                    )
                if len(found) + len(folders) > limits.members:
                    raise LotteryError(
                        f"{where}: holds more than {limits.members:,} files; is it the right folder?"
                    )

        with _named(where):
            look(path, "", 1)
        super().__init__(found, where, limits)
        self.folders = frozenset(folders)


class _Zip:
    """A zip archive, stored or deflated."""

    def __init__(self, file: IO[bytes], where: str, limits: Limits):
        self.where = where
        size = os.fstat(file.fileno()).st_size
        with _named(where):
            reader = _BoundedReads(file, max(2**17, 250 * limits.members))
            listed = _members_of_zip(reader, size)
            self.archive = zipfile.ZipFile(reader)
        if listed != len(self.archive.infolist()):
            raise _damaged(
                where, f"{len(self.archive.infolist()):,} members are listed of {listed:,}"
            )
        self.members: dict[str, zipfile.ZipInfo] = {}
        names = _Names(where, limits)
        for info in self.archive.infolist():
            name = names.check(info.orig_filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise LotteryError(
                    f"{where}: {shown(name)} is a link or a device; accepted: files and folders"
                )
            if info.orig_filename.endswith("/"):
                names.add_folder(name)
                continue
            if info.flag_bits & 1:
                raise LotteryError(
                    f"{where}: {shown(name)} is encrypted; pack the archive without a password"
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise LotteryError(
                    f"{where}: {shown(name)} is neither stored nor deflated; pack it as an ordinary zip"
                )
            _check_size(where, name, info.file_size, limits)
            names.add_file(name)
            self.members[name] = info
        _check_total(
            where, sum(info.file_size for info in self.members.values()), limits.unpacked(size)
        )
        self.files, self.folders = tuple(self.members), frozenset(names.folders)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in wanted:
            info = self.members[name]
            with _named(f"{self.where}: {shown(name)}"), self.archive.open(info) as file:
                content = file.read(info.file_size + 1)  # checks the CRC-32 at the end
            if len(content) != info.file_size:
                raise _damaged(
                    f"{self.where}: {shown(name)}", f"{len(content):,} bytes of {info.file_size:,}"
                )
            yield name, content


def _members_of_zip(file: IO[bytes], size: int) -> int:
    """How many members the record at the end of a zip says there are; zipfile does not compare."""
    file.seek(max(0, size - 2**17))
    end = file.read()
    at = end.rindex(b"PK\5\6")  # ValueError where there is none
    count = int.from_bytes(end[at + 10 : at + 12], "little")
    if count == 0xFFFF and (longer := end.rfind(b"PK\6\6")) >= 0:
        return int.from_bytes(end[longer + 32 : longer + 40], "little")
    return count


class _Tar:
    """A tar archive, plain or gzipped: passed over once for the names and once for the contents."""

    def __init__(self, file: IO[bytes], where: str, limits: Limits, *, packed: bool):
        self.where, self.file, self.limits, self.packed = where, file, limits, packed
        self.size = os.fstat(file.fileno()).st_size
        names = _Names(where, limits)
        with _named(where):
            for member, _ in self._members():
                name = names.check(member.name)
                if member.isdir():
                    names.add_folder(name)
                    continue
                if not member.isreg() or member.issparse():
                    raise LotteryError(
                        f"{where}: {shown(name)} is a link, a device or of another special kind; "
                        "accepted: files and folders"
                    )
                _check_size(where, name, member.size, limits)
                names.add_file(name)
        self.files, self.folders = tuple(names.files), frozenset(names.folders)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        wanted = set(wanted)
        members = self._members()
        while True:
            with _named(self.where):
                member, archive = next(members, (None, None))
                if member is None or archive is None:
                    return
                name = _relative(member.name)
                if name not in wanted or not member.isreg():
                    continue
                file = archive.extractfile(member)
                assert file is not None
                content = file.read(member.size)
            if len(content) != member.size:
                raise _damaged(
                    f"{self.where}: {shown(name)}", f"{len(content):,} bytes of {member.size:,}"
                )
            yield name, content

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        """Each member in turn; at the end, what remains is read, so that gzip's checksum is compared."""
        self.file.seek(0)
        with contextlib.ExitStack() as stack:
            source: Any = (
                stack.enter_context(gzip.GzipFile(fileobj=self.file)) if self.packed else self.file
            )
            stream: Any = _Counted(source, self.where, self.limits.unpacked(self.size))

            class Header(_Header):
                where, limits = self.where, self.limits

            archive = stack.enter_context(
                tarfile.open(fileobj=stream, mode="r|", tarinfo=Header, encoding="utf-8")
            )
            while (member := archive.next()) is not None:
                yield member, archive
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            if not Header.ended:
                raise _damaged(self.where, "a header is invalid, or the end is missing")
            while stream.read(MIB):
                pass


class _Header(tarfile.TarInfo):
    """Notes whether the end mark was reached, and refuses what tarfile would read without a limit."""

    where: ClassVar[str]
    limits: ClassVar[Limits]
    ended: ClassVar[bool] = False
    seen: ClassVar[int] = 0

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        cls.ended = len(buf) == tarfile.BLOCKSIZE and not any(buf)
        cls.seen += 1
        if cls.seen > 2 * cls.limits.members:
            raise LotteryError(f"{cls.where}: holds more than {cls.limits.members:,} members")
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and not 0 <= header.size <= MIB:
            raise LotteryError(
                f"{cls.where}: a header of {header.size:,} bytes; accepted: up to {MIB:,}"
            )
        return header


_READ_WHOLE = (b"x", b"g", b"X", b"L", b"K")
"""The types of tar members that hold a long name or other attributes: tarfile reads them into memory."""


class _Counted:
    """Reads on, up to a limit."""

    def __init__(self, source: IO[bytes], where: str, limit: int):
        self.source, self.where, self.limit, self.done = source, where, limit, 0

    def read(self, size: int = -1) -> bytes:
        content = self.source.read(size)
        self.done += len(content)
        _check_total(self.where, self.done, self.limit)
        return content


class _BoundedReads(io.BufferedReader):
    """Refuses to read much at once: zipfile reads a table of contents, however long, in one go."""

    def __init__(self, file: IO[bytes], limit: int):
        super().__init__(io.FileIO(file.fileno(), closefd=False))
        self.limit = limit

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = self.limit + 1
        if size > self.limit + 1:
            raise zipfile.BadZipFile("its table of contents is too long")
        return super().read(size)


class _Names:
    """The names of an archive's members, each checked and met once."""

    def __init__(self, where: str, limits: Limits):
        self.where, self.limits, self.count = where, limits, 0
        self.files: dict[str, None] = {}
        self.folders: set[str] = set()

    def check(self, raw: str) -> str:
        """The relative name without ``.`` parts. Raises LotteryError where it leaves the archive."""
        self.count += 1
        if self.count > self.limits.members:
            raise LotteryError(f"{self.where}: holds more than {self.limits.members:,} members")
        _plain(raw, self.where)
        if (
            "\\" in raw
            or raw.startswith("/")
            or re.match("[A-Za-z]:", raw)
            or ".." in raw.split("/")
        ):
            raise LotteryError(
                f"{self.where}: {shown(raw)} points out of the archive; accepted: relative names"
            )
        return _relative(raw)

    def add_file(self, name: str) -> None:
        if not name:
            raise _damaged(self.where, "a file without a name")
        if name in self.files:
            raise LotteryError(f"{self.where}: {shown(name)} is there twice; pack each file once")
        self.files[name] = None
        self.add_folder(name.rpartition("/")[0])

    def add_folder(self, name: str) -> None:
        while name and name not in self.folders:
            self.folders.add(name)
            name = name.rpartition("/")[0]


def _relative(raw: str) -> str:
    return "/".join(part for part in raw.split("/") if part not in ("", "."))


def _plain(name: str, where: str) -> str:
    if not name.isprintable() or not name.strip("/"):
        raise LotteryError(f"{where}: a name is not plain text: {shown(name)}; rename it")
    return name


def is_hidden(name: str) -> bool:
    """Whether a name is what systems leave in folders, no part of a dataset: ``.DS_Store``, ``__MACOSX/…``."""
    parts = name.split("/")
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1] in (
        "Thumbs.db",
        "desktop.ini",
    )


def by_last_part(files: Collection[str]) -> dict[str, str]:
    """Files by the last part of their names; those whose last part another shares are left out."""
    visible = [name for name in files if not is_hidden(name)]
    counts = Counter(name.rpartition("/")[2] for name in visible)
    return {last: name for name in visible if counts[last := name.rpartition("/")[2]] == 1}


def shown(name: str) -> str:
    """A name for a message: quoted where it is odd, shortened where it is long."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:50]}…{text[-47:]}"


def unzip(content: bytes, where: str, most: int) -> bytes:
    """The content of a gzip file of at most ``most`` bytes. Raises LotteryError where it is damaged or larger."""
    with _named(where), gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        unpacked = file.read(most + 1)
        if len(unpacked) > most:
            raise LotteryError(f"{where}: unpacks to more than {most:,} bytes")
        return unpacked


def _check_size(where: str, name: str, size: int, limits: Limits) -> None:
    if not 0 <= size <= limits.member_bytes:
        raise LotteryError(
            f"{where}: {shown(name)} has {size:,} bytes; accepted: up to {limits.member_bytes:,}"
        )


def _check_total(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise LotteryError(
            f"{where}: unpacks to more than {limit:,} bytes, too many for an archive of its size"
        )


def _damaged(where: str, why: object) -> LotteryError:
    return LotteryError(f"{where}: damaged or truncated ({why}); obtain it again")


DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, KeyError, IndexError, OverflowError,
    NotImplementedError, RuntimeError, MemoryError, RecursionError,
)  # fmt: skip
"""What the readers of the standard library raise on damaged input."""


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Turns whatever a reader raises into a LotteryError that names the file."""
    try:
        yield
    except gzip.BadGzipFile as error:  # an OSError
        raise _damaged(where, error) from None
    except OSError as error:
        raise LotteryError(f"{where}: cannot be read: {error.strerror or error}") from None
    except DAMAGE as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from None
