"""Archives from anywhere: what is in them is read, what is wrong with them is named, nothing is extracted."""

import gzip
import io
import stat
import struct
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.datasets import formats
from lottery.datasets.archives import LIMITS, Limits, by_last_part, is_hidden, open_tree, unzip
from lottery.errors import LotteryError

FILES = {
    "train/cat/1.png": b"one" * 50,
    "train/dog/2.png": b"two",
    "README": b"",
    "test/cat/3.png": bytes(range(256)),
}


def zipped(files, change=lambda info: None, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) pairs; ``change`` may spoil each member's header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that repeat
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.filename = name
            info.compress_type = compression
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            change(info)
            archive.writestr(info, content)
    return buffer.getvalue()


def tarred(files, change=lambda info: None, format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def gzipped_tar(files, change=lambda info: None):
    return gzip.compress(tarred(files, change), 1, mtime=0)


PACKERS = {"zip": zipped, "tar": tarred, "tar.gz": gzipped_tar}
packed_with = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(path, limits=LIMITS):
    with open_tree(path, path.name, limits) as tree:
        found = dict(tree.read(tree.files))
        assert list(found) == list(tree.files)
    return found


def contents_of(content, limits=LIMITS):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        path.write_bytes(content)
        return contents(path, limits)


def complaint(content, limits=LIMITS):
    with pytest.raises(LotteryError) as error:
        contents_of(content, limits)
    assert str(error.value).startswith("archive: ")
    assert "\n" not in str(error.value)
    return str(error.value)


# What is read


@packed_with
def test_an_archive_holds_what_was_packed(pack):
    assert contents_of(pack(FILES.items())) == FILES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_tar_format(format):
    name = "/".join(["folder" * 8] * 4) + "/1.png"
    assert contents_of(tarred([(name, b"x")], format=format)) == {name: b"x"}


def test_a_folder_is_read_through_links_and_without_what_it_hides(tmp_path):
    write_folder(tmp_path / "real", FILES)
    write_folder(tmp_path / "real", {"train/.DS_Store": b"hidden", ".git/train/x.png": b"hidden"})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "real" / "train")
    (tmp_path / "linked" / "around").symlink_to(tmp_path / "linked")
    with open_tree(tmp_path / "real", "folder") as tree:
        visible = [name for name in tree.files if not is_hidden(name)]
        assert dict(tree.read(visible)) == FILES
        assert tree.folders >= {"train", "train/cat", "train/dog", "test", "test/cat"}
    with open_tree(tmp_path / "linked", "folder") as tree:
        assert dict(tree.read(["train/cat/1.png"])) == {"train/cat/1.png": FILES["train/cat/1.png"]}


def test_a_broken_link_in_a_folder_is_named(tmp_path):
    (tmp_path / "x.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        LotteryError, match=r"^folder: x\.png is neither a file nor a folder \(a broken link\?\)"
    ):
        open_tree(tmp_path, "folder").__enter__()


@packed_with
def test_only_wanted_members_are_read_and_folders_are_known(tmp_path, pack):
    path = tmp_path / "archive"
    path.write_bytes(pack([("./train/", b""), *FILES.items(), ("./train//empty/", b"")]))
    if pack is not zipped:  # a folder in a tar has a type of its own
        as_folder = lambda info: setattr(
            info, "type", tarfile.DIRTYPE if info.name.endswith("/") else info.type
        )
        path.write_bytes(
            pack([("./train/", b""), *FILES.items(), ("./train//empty/", b"")], as_folder)
        )
    with open_tree(path, "archive") as tree:
        assert tree.files == tuple(FILES)
        assert tree.folders == {
            "train",
            "train/cat",
            "train/dog",
            "train/empty",
            "test",
            "test/cat",
        }
        for _ in range(2):
            assert dict(tree.read(["test/cat/3.png"])) == {
                "test/cat/3.png": FILES["test/cat/3.png"]
            }


def test_files_are_found_by_the_last_part_unless_two_share_it():
    names = ["a/x.bin", "a/y.bin", "b/y.bin", "__MACOSX/a/._x.bin", "__MACOSX/a/x.bin"]
    assert by_last_part(names) == {"x.bin": "a/x.bin"}


# What is refused


@packed_with
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a/..", "C:/x", "C:x", "a\\..\\x", "//host/x"]
)
def test_a_name_that_leaves_the_archive_is_refused(pack, name):
    assert "points out of the archive" in complaint(pack([("good.png", b"x"), (name, b"x")]))


@packed_with
@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\u202ex"])
def test_a_name_that_would_spoil_a_terminal_is_refused_and_shown_harmlessly(pack, name):
    message = complaint(pack([(name, b"x")]))
    assert "not plain text" in message
    assert message.isprintable()


@packed_with
def test_a_name_that_repeats_is_refused(pack):
    assert "a.png is there twice" in complaint(pack([("a.png", b"one"), ("a.png", b"two")]))
    assert "a.png is there twice" in complaint(pack([("a.png", b"one"), ("./a.png", b"two")]))


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK]
)
def test_a_zip_with_a_link_or_device_is_refused(kind):
    spoil = lambda info: setattr(info, "external_attr", (kind | 0o777) << 16)  # noqa: E731
    assert "x.png is a link or a device" in complaint(zipped([("x.png", b"/etc/passwd")], spoil))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_a_tar_with_a_link_or_device_is_refused(kind):
    def spoil(info):
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    for pack in (tarred, gzipped_tar):
        assert "x.png is a link, a device or of another special kind" in complaint(
            pack([("x.png", b"")], spoil)
        )


@packed_with
def test_too_many_members_are_refused(pack):
    files = [(f"{n}.png", b"") for n in range(11)]
    assert "holds more than 10 members" in complaint(pack(files), Limits(members=10))
    assert len(contents_of(pack(files), Limits(members=11))) == 11


def test_a_zips_table_of_contents_is_not_read_where_it_is_too_long():
    files = [(f"{n}.png" + "x" * 60_000, b"") for n in range(3)]
    assert "its table of contents is too long" in complaint(zipped(files), Limits(members=10))


@packed_with
def test_a_member_or_total_above_the_limit_is_refused(pack):
    files = [("a", b"x" * 1000), ("b", b"x" * 1001)]
    assert "b has 1,001 bytes; accepted: up to 1,000" in complaint(
        pack(files), Limits(member_bytes=1000)
    )
    assert "unpacks to more than 2,000 bytes" in complaint(pack(files), Limits(total_bytes=2000))


@pytest.mark.parametrize("pack", [zipped, gzipped_tar])
def test_a_compression_bomb_is_refused(pack):
    bomb = pack([(f"{n}.png", bytes(33 * 2**20)) for n in range(2)])
    assert len(bomb) < 2**20
    assert "too many for an archive of its size" in complaint(bomb)


def test_a_bomb_hidden_behind_the_end_of_a_tar_or_in_its_headers_is_refused():
    assert "too many" in complaint(gzip.compress(tarred([("a", b"")]) + bytes(65 * 2**20), 1))

    def spoil(info):
        info.pax_headers = {"comment": "x" * 2**20}

    assert "a header of 1,04" in complaint(gzipped_tar([("a", b"")], spoil))


def test_a_zip_member_of_another_size_than_declared_is_refused():
    archive = zipped([("a", b"x" * 1000)])
    for declared in (10, 999, 1001, 5000):
        spoiled = archive.replace(struct.pack("<I", 1000), struct.pack("<I", declared))
        assert spoiled != archive
        assert "damaged or truncated" in complaint(spoiled)


def test_a_tar_member_of_another_size_than_declared_is_refused():
    archive = bytearray(tarred([("a", b"x" * 1000), ("b", b"y" * 1000)]))
    for declared in (100, 400, 1200, 900_000):
        archive[124:136] = b"%011o\0" % declared
        archive[148:156] = b" " * 8
        archive[148:156] = b"%06o\0 " % sum(archive[:512])
        assert "damaged or truncated" in complaint(bytes(archive))


def test_a_zip_of_more_members_than_its_short_end_record_counts_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        for n in range(66_000):
            archive.writestr(f"{n}", b"")
    with open_tree(tmp_path / "archive", "archive") as tree:
        assert len(tree.files) == 66_000


def test_what_is_encrypted_or_packed_in_rarer_ways_is_refused():
    archive = bytearray(zipped([("a", b"x" * 100)]))
    archive[6] |= 1
    archive[archive.index(b"PK\1\2") + 8] |= 1
    assert "a is encrypted" in complaint(bytes(archive))
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "neither stored nor deflated" in complaint(
            zipped([("a", b"x")], compression=compression)
        )


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"not an archive" * 100, b"BZh91AY&SY", b"\xfd7zXZ\0", bytes(1024)]
)
def test_what_is_no_archive_is_refused(content):
    assert "neither a folder nor a zip, tar or tar.gz archive" in complaint(content)


@packed_with
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_archive_is_refused(pack, share):
    rng = np.random.default_rng(0)
    archive = pack([(f"{n}.png", rng.bytes(3000)) for n in range(20)])
    if pack is tarred:  # what follows the end mark is padding
        archive = archive[: -archive[::-1].index(archive.rstrip(b"\0")[-1:])]
    complaint(archive[: int(len(archive) * share)])


def test_a_tar_cut_at_a_members_border_is_refused():
    archive = tarred([("a", b"x" * 512), ("b", b"y" * 512)])
    assert "the end is missing" in complaint(archive[:1024])
    assert "the end is missing" in complaint(archive[:2048])
    assert len(contents_of(archive[:2560])) == 2


@given(
    st.sampled_from(["zip", "tar.gz"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_are_an_error_or_change_nothing(kind, flips):
    archive = bytearray(PACKERS[kind](FILES.items()))
    for position, change in flips:
        archive[position % len(archive)] ^= change
    try:
        found = contents_of(bytes(archive))
    except LotteryError as error:
        assert str(error).isprintable()
    else:
        assert found == FILES


@given(
    st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", bytes(257) + b"ustar"]),
    st.binary(max_size=2000),
)
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_an_error(start, rest):
    try:
        assert contents_of(start + rest) == {}  # "PK\5\6" and zeros are an empty zip
    except LotteryError as error:
        assert str(error).isprintable()


# The files of the public datasets


def idx_of(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


def npy_of(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


def test_idx_and_npy_are_read():
    assert np.array_equal(formats.idx(idx_of(PIXELS)), PIXELS)
    assert np.array_equal(formats.npy(npy_of(PIXELS)), PIXELS)
    labels = np.arange(5, dtype=np.int64)
    assert np.array_equal(formats.npy(npy_of(labels)), labels)


def test_cifar_records_are_read_plane_by_plane():
    red, green, blue = (
        np.full(1024, 1, np.uint8),
        np.full(1024, 2, np.uint8),
        np.arange(1024).astype(np.uint8),
    )
    record = np.concatenate([red, green, blue]).tobytes()
    images, labels = formats.cifar(b"\x07" + record + b"\x09" + record, labels=1)
    assert images.shape == (2, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.tolist() == [7, 9]
    assert labels.dtype == np.int32
    assert images[1, 1, 5].tolist() == [1, 2, 37]
    assert formats.cifar(b"\x03\x63" + record, labels=2)[1].tolist() == [
        99
    ]  # CIFAR-100: the fine label


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x08\x03",
        idx_of(PIXELS)[:-1],
        idx_of(PIXELS) + b"x",
        b"\0\0\x0d\x01\0\0\0\0",
        b"\0\0\x08\x04" + b"\xff" * 16,
        b"\0\0\x08\x00",
        b"\0\0\x08\xff" + bytes(1020),
    ],
)
def test_what_is_no_idx_file_is_refused(content):
    with pytest.raises(ValueError, match=r"\w"):
        formats.idx(content)


def npy_header(text):
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        npy_of(PIXELS)[:-1],
        npy_of(PIXELS) + b"x",
        npy_of(np.array([{"a": 1}], dtype=object)),
        npy_of(np.asfortranarray(PIXELS)),
        npy_of(PIXELS.astype(np.float32)),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,)}"),
        npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}")
        + b"cos\nsystem\n(S'true'\ntR.",
        npy_header("__import__('os').system('true')"),
    ],
)
def test_what_is_no_npy_file_of_integers_is_refused(content):
    with pytest.raises(ValueError, match=r"\w"):
        formats.npy(content)


@given(
    st.sampled_from([formats.idx, formats.npy]),
    st.integers(0, 200),
    st.integers(1, 255),
    st.integers(-60, 0),
)
@settings(max_examples=200, deadline=None)
def test_a_spoiled_header_is_an_error_or_an_array_of_the_bytes_there(read, position, change, cut):
    content = bytearray(idx_of(PIXELS) if read is formats.idx else npy_of(PIXELS))
    content[position % len(content)] ^= change
    try:
        found = read(bytes(content[: len(content) + cut]))
    except ValueError:
        return
    assert (
        found.nbytes < len(content) + cut
    )  # no checksum: a shape that fits what is there is taken
    assert cut or found.nbytes == PIXELS.nbytes


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3),
    st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_a_spoiled_gzip_is_an_error_or_changes_nothing(flips, cut):
    content = bytearray(gzip.compress(idx_of(PIXELS), mtime=0))
    for position, change in flips:
        content[position % len(content)] ^= change
    try:
        found = unzip(bytes(content[: len(content) - cut]), "x.gz", 10_000)
    except LotteryError as error:
        assert str(error).startswith("x.gz: damaged or truncated")
    else:
        assert np.array_equal(formats.idx(found), PIXELS)


def test_a_gzip_bomb_is_refused():
    with pytest.raises(LotteryError, match=r"x\.gz: unpacks to more than 1,000 bytes"):
        unzip(gzip.compress(bytes(10**7)), "x.gz", 1000)
