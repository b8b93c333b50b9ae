"""Sources: downloads from servers that fail, archives from anywhere, local paths."""

import hashlib
import io
import json
import re
import struct
import tarfile
import tempfile
import threading
import zipfile
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.artifacts.files import cache_folder
from lottery.datasets import archives, sources
from lottery.datasets.pinning import asked_again, check_seen
from lottery.errors import LotteryError
from lottery.params import Data

CONTENT = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILES = {"train/cat/1.png": b"one" * 99, "train/dog/2.png": b"two", "test/cat/3.png": b""}


class Handler(BaseHTTPRequestHandler):
    """Serves the server's ``content`` in the way that the path's first part names."""

    def do_GET(self):
        self.server.asked.append(self.path)
        with suppress(OSError):
            self.answer(self.path.split("/")[1], self.server.content)

    do_HEAD = do_GET

    def answer(self, way, content):
        self.send_response({"404": 404, "moved": 302}.get(way, 200))
        self.send_header("Location", "/good/file.bin?signature=secret")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()[:8]}"')
        if way != "endless":
            self.send_header("Content-Length", 0 if way in ("404", "moved") else len(content))
        self.end_headers()
        body = {"wrong": content[::-1], "short": content[:99], "404": b"", "moved": b""}
        self.wfile.write(body.get(way, content))
        while way == "endless" and not self.server.over.is_set():
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """One that notes what it was asked for."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.asked, running.content, running.over = [], CONTENT, threading.Event()
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.over.set()
    running.shutdown()
    running.server_close()


def url_of(server, way):
    return f"http://127.0.0.1:{server.server_port}/{way}/file.bin"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(sources, "MOST_BYTES", 2 * len(CONTENT))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def download(server, *ways):
    return sources.download([url_of(server, way) for way in ways], SHA256, cache_folder())


# Downloads


def test_a_file_arrives_whole_and_only_once(server, cache):
    for _ in range(2):
        assert download(server, "good") == cache / SHA256
        assert (cache / SHA256).read_bytes() == CONTENT
        assert len(server.asked) == len(list(cache.iterdir())) == 1
    (cache / SHA256).write_bytes(CONTENT[:-1])
    assert download(server, "good").read_bytes() == CONTENT


@pytest.mark.parametrize(("way", "cause"), [
    ("short", "IncompleteRead"), ("wrong", f"expected {SHA256} but got"),
    ("endless", "sends more than the 524,288 bytes accepted"), ("404", "404 Client Error"),
])  # fmt: skip
def test_a_bad_server_is_named_and_the_next_mirror_is_used(server, cache, way, cause):
    with pytest.raises(LotteryError) as error:
        download(server, way, "404")
    lines = str(error.value).splitlines()
    assert lines[0] == "file.bin could not be downloaded:"
    assert lines[1].startswith(f"  {url_of(server, way)}: ")
    assert re.search(cause, lines[1])
    assert lines[2].startswith(f"  {url_of(server, '404')}: ")
    assert "data.source" in lines[3]
    assert list(cache.iterdir()) == []
    assert download(server, way, "good").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "http://[::1/x"])
def test_a_url_that_leads_nowhere_is_an_error(url):
    with pytest.raises(LotteryError, match=r"x could not be downloaded:\n  http"):
        sources.download([url], SHA256, cache_folder())


def test_a_cache_that_cannot_be_written_is_named(server, cache):
    cache.write_text("occupied")
    with pytest.raises(LotteryError, match=r"the cache of downloads cannot be used.*LOTTERY_CACHE"):
        download(server, "good")


def obtain(source, **values):
    """The source's folder as relative names and contents, and the source."""
    with sources.opened(Data(name="image_folder", validation_size=4, source=source, **values)) as s:
        found = {
            name: (s.folder / name).read_bytes()
            for name in sources.file_names(s.folder) if not name.endswith("/")
        }  # fmt: skip
        return found, s


def test_credentials_and_signatures_stay_out_of_messages_and_results(server, capsys):
    server.content = zipped(FILES.items())
    url = url_of(server, "good").replace("//", "//user:secret@") + "?signature=secret#secret"
    found, source = obtain(url)
    assert (found, source.name) == (FILES, url_of(server, "good"))
    said = capsys.readouterr().err
    assert said.count("it is not pinned: set data.sha256 to ") == 1
    assert hashlib.sha256(server.content).hexdigest() in said
    assert obtain(url, sha256=source.sha256["file.bin"])[0] == FILES
    for wrong in (url.replace("good", "404"), url.replace("http", "ftp"), f"{url}://"):
        with pytest.raises(LotteryError) as error:
            obtain(wrong, sha256="0" * 64)
        said += str(error.value) + capsys.readouterr().err
    assert "secret" not in said


def test_an_unpinned_download_that_has_changed_is_told(server, tmp_path, capsys):
    server.content = zipped(FILES.items())
    url = f"{url_of(server, 'moved')}?signature=secret"
    data = Data(name="image_folder", validation_size=4, source=url)
    where = f"data.source: {url_of(server, 'moved')}: not pinned (data.sha256)"
    assert asked_again(data) == (False, f"{where}: whether it has changed cannot be told")
    _, source = obtain(url)
    before = source.version["ETag"]
    facts = {"source": source.name, "source_version": source.version}
    write(tmp_path / "data/dataset", {"dataset.json": json.dumps(facts).encode()})
    assert asked_again(data) == (False, "")
    another = data.model_copy(update={"source": url_of(server, "good")})  # than what is there is of
    assert asked_again(another)[1].endswith(": whether it has changed cannot be told")
    server.content = zipped([*FILES.items(), ("train/dog/4.png", b"")])
    changed, line = asked_again(data)
    assert changed
    assert line.startswith(f"{where}: its ETag was {before} when it was fetched, now ")
    server.server_close()
    server.shutdown()
    why = "and its server could not be asked (ConnectionError)"
    assert asked_again(data) == (False, f"{where}, {why}")
    pinned = data.model_copy(update={"sha256": source.sha256["file.bin"]})
    assert asked_again(pinned) == (False, "")


# Archives


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return content.getvalue()


def tarred(members, mode="w", kind=tarfile.REGTYPE):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"  # of a link
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


packed_tar = partial(tarred, mode="w:gz")
packed_with = pytest.mark.parametrize("pack", [zipped, tarred, packed_tar])


def unpacked(folder, content):
    """What lies in the folder afterwards."""
    into = Path(tempfile.mkdtemp(dir=folder))
    (folder / "archive").write_bytes(content)
    archives.unpack(folder / "archive", into, "archive")
    return {
        path.relative_to(into).as_posix(): path.read_bytes()
        for path in into.rglob("*") if path.is_file()
    }  # fmt: skip


def complaint(folder, content):
    with pytest.raises(LotteryError, match=r"^archive: ") as error:
        unpacked(folder, content)
    assert str(error.value).isprintable()
    return str(error.value)


@packed_with
def test_an_archive_holds_what_was_packed_and_whole_it_must_be(tmp_path, pack):
    assert unpacked(tmp_path, pack(FILES.items())) == FILES
    content = pack([(f"{n}.png", CONTENT[n:3000]) for n in range(20)])
    for share in (0.05, 0.3, 0.5, 0.8):
        assert "damaged or truncated" in complaint(tmp_path, content[: int(len(content) * share)])


def test_a_tar_whose_last_file_is_a_zip_is_a_tar(tmp_path):
    inner = zipped([("train/cat/1.png", b"older")], compression=zipfile.ZIP_STORED)
    members = [*FILES.items(), ("before.zip", inner)]
    assert unpacked(tmp_path, tarred(members)) == dict(members)


def test_a_tar_cut_or_damaged_at_a_members_border_is_refused(tmp_path):
    content = tarred([("a", b"x" * 512), ("b", b"y" * 512)])
    assert "the end is missing" in complaint(tmp_path, content[:1024])
    damaged = content[:1024] + b"?" + content[1025:]
    assert "a header is invalid" in complaint(tmp_path, damaged)


@packed_with
@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "C:/x", "//host/x"])
def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path, pack, name):
    message = complaint(tmp_path, pack([("good.png", b"x"), (name, b"x")]))
    assert "points out of the archive" in message


@pytest.mark.filterwarnings("ignore:Duplicate name")
@packed_with
def test_names_that_repeat_or_would_spoil_a_terminal_are_refused(tmp_path, pack):
    assert "a.png is there twice" in complaint(tmp_path, pack([("a.png", b"1"), ("a.png", b"2")]))
    assert r"a\x1b[31m' is there" in complaint(tmp_path, pack([("a\x1b[31m", b"")]))
    assert "of more than 1,000 char" in complaint(tmp_path, pack([("a/" * 500 + "b", b"")]))
    assert "or 255 bytes a folder" in complaint(tmp_path, pack([("ä" * 128, b"")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S"])
def test_a_tar_with_a_link_or_a_device_is_refused(tmp_path, kind):
    assert "x.png is a link, a device" in complaint(tmp_path, tarred([("x.png", b"")], kind=kind))


@packed_with
def test_what_unpacks_to_too_much_is_refused_before_it_is_written(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(archives, "MOST_FILES", 10)
    assert len(unpacked(tmp_path, pack((f"{n}", b"") for n in range(10)))) == 10
    assert "more than 10 files" in complaint(tmp_path, pack((f"{n}", b"") for n in range(11)))
    monkeypatch.setattr(archives, "MOST_BYTES", 1000)
    assert "more than 1,000 bytes" in complaint(tmp_path, pack([("a", b"x" * 1001)]))


@pytest.mark.parametrize("pack", [zipped, packed_tar])
def test_a_compression_bomb_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(archives, "MIB", 2**10)
    bomb = pack((f"{n}.png", bytes(33 * 2**10)) for n in range(2))
    assert "too many for an archive of its size" in complaint(tmp_path, bomb)


def test_a_zip_member_of_another_size_than_declared_is_refused(tmp_path):
    content = zipped([("a", b"x" * 1000)])
    for declared in (10, 999, 1001, 5000):
        spoiled = content.replace(struct.pack("<I", 1000), struct.pack("<I", declared))
        assert "damaged or truncated" in complaint(tmp_path, spoiled)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"no archive" * 99, b"\x1f\x8b"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    assert "not a zip, tar or tar.gz archive, an npz" in complaint(tmp_path, content)


@given(
    st.sampled_from([zipped, packed_tar]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
)
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_are_an_error_or_change_nothing(tmp_path_factory, pack, flips):
    content = bytearray(pack(FILES.items()))
    for position, change in flips:
        content[position % len(content)] ^= change
    try:
        found = unpacked(tmp_path_factory.getbasetemp(), bytes(content))
    except LotteryError as error:
        assert str(error).isprintable()
    else:
        assert found == FILES


def test_a_zip_of_windows_powershell_has_backslashes(tmp_path):
    members = [(name.replace("/", "\\"), content) for name, content in FILES.items()]
    assert unpacked(tmp_path, zipped([("train\\", b""), *members])) == FILES


@pytest.mark.parametrize(("encoding", "taken", "read_as"), [
    ("utf-8", "UTF-8", "crème"), ("cp1252", "code page 437", "crΦme"),
])  # fmt: skip
def test_names_of_unknown_encoding_are_said(tmp_path, capsys, encoding, taken, read_as):
    name = "crème".encode(encoding)
    ascii_name = b"-" * len(name)  # which needs no flag of UTF-8
    content = zipped([(ascii_name.decode(), b"x")]).replace(ascii_name, name)
    assert unpacked(tmp_path, content) == {read_as: b"x"}
    assert f"read as {taken}, such as {read_as}" in capsys.readouterr().err


# Local sources


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("source", ["my images", "~/a b.zip", "file://{}/a%20b.zip"])
def test_one_source_gives_one_folder_however_it_is_named(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "my images", FILES)
    (tmp_path / "a b.zip").write_bytes(zipped(FILES.items()))
    is_folder, source = source == "my images", source.format(tmp_path)
    found, opened = obtain(source)
    assert found == FILES
    assert opened.name == ("my images" if is_folder else "a b.zip")
    with pytest.raises(LotteryError, match=rf"has sha256 \w+.*expected {'0' * 64}"):
        obtain(source, sha256="0" * 64)
    assert opened.folder.exists() == is_folder


@pytest.mark.parametrize(("source", "message"), [
    ("no/such.zip", "data.source: no/such.zip: not there"), ("/dev/null", "neither a file nor a"),
    ("s3://bucket/x.zip", "accepted: an http, https or file URL"), ("x\0y", "not there"),
    ("file://elsewhere/x.zip", "neither a path nor a URL that can be read"),
    ("~no-such-user/x.zip", "home directory"),
])  # fmt: skip
def test_a_source_that_cannot_be_used_is_named(source, message):
    with pytest.raises(LotteryError, match=message):
        obtain(source)


@pytest.mark.parametrize("source", ["data/dataset/x.zip", "reports", "link", "data/own/link"])
def test_a_source_where_stages_write_is_refused_naming_the_safe_place(tmp_path, source):
    write(tmp_path, {"data/mine/x": b"", "data/dataset/x.zip": b"", "reports/x": b""})
    write(tmp_path / "data/own/mine", FILES)
    (tmp_path / "link").symlink_to(tmp_path / "data" / "mine")
    (tmp_path / "data/own/link").symlink_to(tmp_path / "data" / "mine")
    with pytest.raises(LotteryError, match=r"lies in (data|reports)/.*move it out, to data/own/"):
        obtain(source)
    assert "move it out, to data/own/" in refusal(source)  # before anything else is said of it
    assert obtain("data/own/mine")[0] == FILES


def refusal(source, sha256=None):
    """Why a source is refused as unseen, if it is."""
    try:
        check_seen(Data(name="image_folder", validation_size=4, source=source, sha256=sha256))
    except LotteryError as error:
        return str(error)


def test_a_local_source_is_watched_by_dvc_or_pinned(tmp_path):
    for folder in ("images", "data/own/images"):
        write(tmp_path / folder, FILES)
    (tmp_path / "x.zip").write_bytes(CONTENT)
    pipeline = tmp_path / "dvc.yaml"
    pipeline.write_text("stages: {fetch: {deps: [data/own]}}")
    way = "move it to data/own/, or add `- {0}` to the deps of fetch in dvc.yaml"
    for source in ("images", str(tmp_path / "images")):
        message = f"data.source: {source}: `dvc repro` would not see it change: {way}"
        assert refusal(source) == message.format(source)
    assert refusal("x.zip").endswith(f"in dvc.yaml, or set data.sha256 to {SHA256}")
    assert refusal("x.zip", SHA256) is None
    for source in ("data/own/images", "not/there", "http://x/y.zip"):
        assert refusal(source) is None
    pipeline.write_text(f"stages: {{fetch: {{deps: [images, {tmp_path / 'x.zip'}]}}}}")
    for source in ("images", str(tmp_path / "images"), "x.zip"):
        assert refusal(source) is None
    write(tmp_path / "images-2", FILES)  # in no folder that is watched
    assert refusal("images-2").startswith("data.source: images-2: `dvc repro` would not see")
    (tmp_path / "images/train/bird").symlink_to(tmp_path / "data/own/images/train/cat")
    assert "bird in train/ is a broken link, one to a folder" in refusal("images")


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    for value, folder in (("/one", "/one"), ("~/here", "/home/u/here"), ("", "/two/lottery")):
        monkeypatch.setenv("LOTTERY_CACHE", value)
        assert cache_folder() == Path(folder)
