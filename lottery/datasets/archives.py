"""Zip and tar archives, unpacked into a folder.

An archive may come from anywhere: links, devices, names that lead out of the folder or repeat, too
many or too large members, and content that does not match its size or checksum are refused.
"""

import errno
import io
import os
import posixpath
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from lottery.errors import LotteryError, say

MIB = 2**20
MOST_FILES = 200_000
MOST_BYTES = 8192 * MIB
LONGEST_NAME = 1000
MOST_RATIO = 200  # of unpacked to packed bytes, beyond the first 64 MiB; images seldom pass 10


def unpack(path: Path, into: Path, context: str) -> None:
    """Unpacks a zip or a tar, packed or not.

    Raises LotteryError, which calls the archive ``context``, for whatever is wrong with it (what
    has been unpacked until then stays), and OSError where it cannot be read or the disk is full.
    """
    most = min(MOST_BYTES, max(64 * MIB, MOST_RATIO * path.stat().st_size))
    try:
        # of a tar whose last member is a zip it says yes too
        if zipfile.is_zipfile(path) and not tarfile.is_tarfile(path):
            _unzip(path, into, context, most)
        else:
            with tarfile.open(path, "r:*", encoding="utf-8") as archive:
                _untar(archive, into, context, most)
    except LotteryError:
        raise
    except Exception as error:  # the standard library raises nearly anything on damaged input
        # gzip's own errors have no number; a damaged position is an invalid argument to seek
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        what = "not a zip, tar or tar.gz archive, an npz or safetensors file"
        raise LotteryError(
            f"{context}: {what}, or damaged or truncated ({why}); obtain it again"
        ) from None


def _unzip(path: Path, into: Path, context: str, most: int) -> None:
    encoding = "UTF-8"
    try:
        archive = zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        archive, encoding = zipfile.ZipFile(path), "code page 437"
    with archive, open(path, "rb") as file:
        members = archive.infolist()
        file.seek(-min(path.stat().st_size, 2**16), io.SEEK_END)
        end = file.read()
        count = int.from_bytes(end[end.rindex(b"PK\5\6") + 10 :][:2], "little")
        if count not in (len(members), 0xFFFF):  # zipfile does not compare; 0xFFFF: many more
            raise ValueError(f"{len(members):,} members are listed of {count:,}")
        for member in members:
            member.filename = member.filename.replace("\\", "/")  # Windows PowerShell's separator
        _check(((member.filename, member.file_size) for member in members), context, most)
        archive.extractall(into, members)  # compares each CRC-32
    for member in members:
        path = into / member.filename
        if member.file_size != (0 if member.is_dir() else path.stat().st_size):
            raise ValueError(f"{shown(member.filename)} is not of the size declared")
    unclear = [m.filename for m in members if not (m.flag_bits & 0x800 or m.filename.isascii())]
    if unclear:
        say(
            f"fetch: {context}: its names do not say their encoding; read as {encoding}, such as "
            f"{shown(unclear[0])}; where that is wrong, pack it anew with names in UTF-8",
            sys.stderr,
        )


def _untar(archive: tarfile.TarFile, into: Path, context: str, most: int) -> None:
    _check(((f"{m.name}/" if m.isdir() else m.name, m.size) for m in archive), context, most)
    special = [m.name for m in archive if m.issparse() or not (m.isreg() or m.isdir())]
    if special:
        raise LotteryError(
            f"{context}: {shown(special[0])} is a link, a device or of another special kind; "
            "accepted: files and folders"
        )
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    end = archive.fileobj.read(MIB)  # to the end, where gzip compares its checksum
    if not end or any(end):  # tarfile takes an invalid header for the end
        raise ValueError("a header is invalid, or the end is missing")
    archive.extractall(into, filter="data")


def _check(members: Iterable[tuple[str, int]], context: str, most: int) -> None:
    """Raises LotteryError for the first name or size that is refused."""
    known: set[str] = set()
    total = 0
    for name, size in members:
        total += size
        if total > most or len(known) == MOST_FILES:
            raise LotteryError(
                f"{context}: unpacks to more than {most:,} bytes, too many for an archive of its "
                f"size, or to more than {MOST_FILES:,} files"
            )
        if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
            raise LotteryError(
                f"{context}: {shown(name)} points out of the archive; accepted: relative names"
            )
        path = posixpath.normpath(name)
        again = path in known and not name.endswith("/")
        long = len(name) > LONGEST_NAME or max(map(len, os.fsencode(name).split(b"/"))) > 255
        if again or not name.isprintable() or long:
            raise LotteryError(
                f"{context}: {shown(name)} is there twice, not plain text, or of more than "
                f"{LONGEST_NAME:,} characters, or 255 bytes a folder; pack each file once"
            )
        known.add(path)


def shown(name: str) -> str:
    """A name for a message: quoted where it is odd, shortened where it is long."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:50]}…{text[-47:]}"
