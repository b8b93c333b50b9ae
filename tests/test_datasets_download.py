"""Downloads from servers that truncate, stall, lie or never end: each over a real socket on 127.0.0.1."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lottery.datasets import download
from lottery.errors import LotteryError

ROOT = Path(__file__).parent.parent
CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MOST = 2 * len(CONTENT)


class Server:
    """Serves CONTENT in the way that the path names; notes each request's path and Range."""

    def __init__(self):
        self.requests: list[tuple[str, str | None]] = []
        self.failures = 0  # how many requests to /flaky are still to be cut short
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests.append((self.path, self.headers.get("Range")))
                self.close_connection = True
                with suppress(OSError):
                    server.answer(self, self.path.split("/")[1])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def url(self, way):
        return f"http://127.0.0.1:{self.http.server_port}/{way}/file.bin"

    def ranges(self, way):
        return [asked for path, asked in self.requests if path.startswith(f"/{way}/")]

    def answer(self, handler, way):
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        body, code, headers = CONTENT, 200, {}

        def reply(code, headers, content=b""):
            handler.send_response(code)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)

        if way in ("ranges", "flaky", "stalls-once") and start:
            body, code = CONTENT[start:], 206
            headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        if way == "shifted" and start:
            return reply(
                206, {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"}, CONTENT
            )
        if way == "spoiled" and start:
            code, headers = (
                206,
                {"Content-Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"},
            )
            body = b"x" * (len(CONTENT) - start)
        if way == "satisfied" and start:
            return reply(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(CONTENT)}"})
        if way.isdigit():
            return reply(int(way), {"Content-Length": "0"})
        if way == "wrong":
            body = CONTENT[::-1]
        if way == "packed":
            headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(body))
        if way == "longer":
            headers["Content-Length"] = str(MOST + 1)
        if way == "loop":
            return reply(302, {"Location": handler.path + "/again", "Content-Length": "0"})
        if way == "moved":
            return reply(302, {"Location": "/ranges/file.bin", "Content-Length": "0"})
        if way == "elsewhere":
            return reply(302, {"Location": "file:///etc/hostname", "Content-Length": "0"})
        if way == "nowhere":
            return reply(302, {"Location": "http://[::1", "Content-Length": "0"})
        if way in ("endless", "endless-redirect"):
            reply(
                302 if "redirect" in way else 200,
                {"Location": "/ranges/file.bin"} if "redirect" in way else {},
            )
            while not self.over.is_set():
                handler.wfile.write(CONTENT)
            return None
        if way in ("truncated", "stalled", "drips") or (
            way in ("flaky", "stalls-once") and self.failures
        ):
            self.failures -= 1
            reply(code, headers, body[: len(body) // 2])
            if way.startswith("stall"):
                self.over.wait(30)
            while way == "drips" and not self.over.wait(0.02):
                handler.wfile.write(b"x")
            return None
        if way == "slow":
            time.sleep(0.5)
        return reply(code, headers, body)


@pytest.fixture
def server(monkeypatch):
    running = Server()
    yield running
    running.over.set()
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, and short times."""
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    return tmp_path / "cache"


def fetch(server, *ways, sha256=SHA256, most=MOST):
    return download.pinned("file.bin", [server.url(way) for way in ways], sha256, most)


def failure(server, *ways, **values):
    with pytest.raises(LotteryError) as error:
        fetch(server, *ways, **values)
    message = str(error.value)
    assert message.startswith("file.bin could not be downloaded:\n")
    assert "data.source" in message.splitlines()[-1]
    assert all(server.url(way) in message for way in ways)
    return message


def left(cache):
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_a_file_arrives_whole_and_only_once(server, cache):
    path = fetch(server, "ranges")
    assert path == cache / SHA256
    assert path.read_bytes() == CONTENT
    assert fetch(server, "ranges") == path
    assert len(server.requests) == 1
    assert left(cache) == [SHA256]


def test_a_cached_file_that_was_damaged_is_downloaded_again(server):
    path = fetch(server, "ranges")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert fetch(server, "ranges").read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_cached_file_needs_neither_network_nor_a_writable_cache(server, cache):
    fetch(server, "ranges")
    cache.chmod(0o500)
    try:
        assert (
            download.pinned("file.bin", ["http://127.0.0.1:9/file.bin"], SHA256, MOST).read_bytes()
            == CONTENT
        )
    finally:
        cache.chmod(0o700)


@pytest.mark.parametrize("way", ["norange", "moved", "packed", "ranges"])
def test_any_honest_server_will_do(server, way):
    assert (
        fetch(server, way).read_bytes() == CONTENT
    )  # "packed" claims a Content-Encoding: nothing is unpacked


@pytest.mark.parametrize(
    ("way", "cause"),
    [
        (
            "truncated",
            f"ended after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes|IncompleteRead",
        ),
        ("stalled", "silent for 0.5 seconds"),
        ("wrong", f"sent another file: sha256 [0-9a-f]{{64}}, expected {SHA256}"),
        ("endless", f"sends more than the {MOST:,} bytes accepted"),
        ("longer", f"would send {MOST + 1:,} bytes, more than the {MOST:,} accepted"),
        ("loop", "more than 5 redirects"),
        ("elsewhere", "'file:///etc/hostname' is no http or https address"),
        ("nowhere", "not a valid URL, or redirects to none"),
        ("500", "HTTP status 500 Internal Server Error"),
        ("404", "HTTP status 404 Not Found"),
        ("204", "HTTP status 204 No Content"),
    ],
)
def test_a_bad_server_is_named_with_the_cause_and_the_next_mirror_is_used(
    server, cache, way, cause
):
    message = failure(server, way)
    (line,) = (line for line in message.splitlines() if server.url(way) in line)
    assert re.search(cause, line)
    assert SHA256 not in left(cache)
    assert fetch(server, way, "norange").read_bytes() == CONTENT


def test_every_mirror_is_named(server):
    message = failure(server, "500", "404", "wrong")
    assert len(message.splitlines()) == 5
    assert server.ranges("500") == [None] * download.ATTEMPTS
    assert server.ranges("404") == [None]  # to ask again would not help
    assert server.ranges("wrong") == [None]


def test_a_redirect_with_an_endless_body_is_followed_without_reading_it(server):
    assert fetch(server, "endless-redirect").read_bytes() == CONTENT


def test_a_body_that_drips_counts_as_stalled(server, monkeypatch):
    monkeypatch.setattr(download, "SLOW_SECONDS", 0.3)
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(download, "SLOW_BYTES", MOST)
    assert re.search(r"stalled: [\d,]+ bytes in 0\.3 seconds", failure(server, "drips"))


@pytest.mark.parametrize("way", ["flaky", "stalls-once"])
def test_a_download_cut_short_is_continued_where_it_stopped(server, way):
    server.failures = 2
    assert fetch(server, way).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges(way) == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]


def test_what_one_mirror_began_another_continues(server):
    assert fetch(server, "truncated", "ranges").read_bytes() == CONTENT
    assert server.ranges("ranges") == [f"bytes={len(CONTENT) // 2}-"]


def test_what_an_earlier_process_began_is_continued(server, cache):
    failure(server, "truncated")
    kept = (cache / f"{SHA256}.partial").stat().st_size
    assert kept >= len(CONTENT) // 2
    assert fetch(server, "ranges").read_bytes() == CONTENT
    assert server.ranges("ranges") == [f"bytes={kept}-"]
    assert left(cache) == [SHA256]


@pytest.mark.parametrize("way", ["norange", "spoiled", "shifted", "satisfied"])
def test_a_server_that_does_not_continue_well_is_begun_anew(server, cache, way):
    cache.mkdir()
    (cache / f"{SHA256}.partial").write_bytes(CONTENT[:1000])
    assert fetch(server, way).read_bytes() == CONTENT
    assert server.ranges(way)[0] == "bytes=1000-"


@pytest.mark.parametrize("partial", [b"not the file", CONTENT[::-1], CONTENT + b"?", CONTENT, b""])
def test_whatever_lies_in_the_cache_the_result_is_the_file(server, cache, partial):
    cache.mkdir()
    (cache / f"{SHA256}.partial").write_bytes(partial)
    assert fetch(server, "ranges", "satisfied").read_bytes() == CONTENT
    if partial == CONTENT:
        assert not server.requests


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://127.0.0.1:9/x", "Connection refused"),
        ("http://no-such-host.invalid/x", "cannot be resolved"),
        ("ftp://127.0.0.1/x", "no http or https address"),
        ("http:///x", "no http or https address"),
        ("http://[::1/x", "not a valid URL"),
        ("http://127.0.0.1:port/x", "not a valid URL"),
        ("file:///no/such/file", "No such file"),
    ],
)
def test_a_url_that_leads_nowhere_is_an_error(url, cause):
    with pytest.raises(LotteryError) as error:
        download.pinned("file.bin", [url], SHA256, MOST)
    assert cause in str(error.value)


def test_a_file_url_is_a_mirror_too(tmp_path):
    (tmp_path / "a file").write_bytes(CONTENT)
    url = (tmp_path / "a file").as_uri()
    assert "%20" in url
    assert download.pinned("file.bin", [url], SHA256, MOST).read_bytes() == CONTENT


def test_credentials_in_a_url_stay_out_of_messages(server):
    url = server.url("404").replace("//", "//user:secret@")
    with pytest.raises(LotteryError) as error:
        download.pinned("file.bin", [url], SHA256, MOST)
    assert "secret" not in str(error.value)
    assert server.url("404") in str(error.value)


def test_a_file_of_unknown_sha256_is_downloaded_each_time(server, cache):
    for _ in range(2):
        path, sha256 = download.unpinned("file.bin", server.url("ranges"), MOST)
        assert (path, sha256) == (cache / SHA256, SHA256)
        assert path.read_bytes() == CONTENT
    assert server.ranges("ranges") == [None, None]
    assert left(cache) == [SHA256]


def test_pieces_of_unknown_sha256_are_not_put_together(server, cache):
    server.failures = 1
    assert download.unpinned("file.bin", server.url("flaky"), MOST)[1] == SHA256
    assert server.ranges("flaky") == [None, None]


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"LOTTERY_CACHE": "/one", "XDG_CACHE_HOME": "/two"}, "/one"),
        ({"LOTTERY_CACHE": "", "XDG_CACHE_HOME": "/two"}, "/two/lottery"),
        ({"LOTTERY_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home/u"}, "/home/u/.cache/lottery"),
        (
            {"LOTTERY_CACHE": "", "XDG_CACHE_HOME": "relative", "HOME": "/home/u"},
            "/home/u/.cache/lottery",
        ),
        ({"LOTTERY_CACHE": "~/here", "HOME": "/home/u"}, "/home/u/here"),
    ],
)
def test_the_cache_is_where_the_environment_says(monkeypatch, environment, folder):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert download.cache_folder() == Path(folder)


def test_a_cache_that_cannot_be_written_is_named(server, monkeypatch, tmp_path):
    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("LOTTERY_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(
        LotteryError, match=r"occupied: the cache of downloads cannot be used.*LOTTERY_CACHE"
    ):
        fetch(server, "ranges")


def in_another_process(url):
    code = f"from lottery.datasets import download; print(download.pinned('file.bin', [{url!r}], {SHA256!r}, {MOST}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_download_it_once(server, cache):
    both = [in_another_process(server.url("slow")) for _ in range(2)]
    outcomes = [process.communicate(timeout=30) for process in both]
    assert [out.strip() for out, _ in outcomes] == [str(cache / SHA256)] * 2, outcomes
    assert len(server.requests) == 1
    assert (cache / SHA256).read_bytes() == CONTENT


def test_a_process_that_is_killed_leaves_what_the_next_continues(server, cache):
    process = in_another_process(server.url("stalled"))
    partial = cache / f"{SHA256}.partial"
    try:
        limit = time.monotonic() + 20
        while not (partial.exists() and partial.stat().st_size >= len(CONTENT) // 4):
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert fetch(server, "ranges").read_bytes() == CONTENT
    (asked,) = server.ranges("ranges")
    assert asked.startswith("bytes=")
