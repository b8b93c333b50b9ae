"""A shared cache: pushed from one clone, pulled in another, on a folder and on S3 (an emulator)."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clones import Clone

S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def s3(tmp_path):
    """The address of an S3 emulator on this machine, with a bucket named lottery."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with open(tmp_path / "moto.log", "w") as log:
        process = subprocess.Popen(server, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        import boto3
        from botocore.exceptions import EndpointConnectionError

        named = {name.lower(): S3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **named)
        for _ in range(100):
            try:
                client.create_bucket(Bucket="lottery")
                break
            except EndpointConnectionError:
                time.sleep(0.2)
        else:
            raise AssertionError((tmp_path / "moto.log").read_text())
        yield address
    finally:
        process.kill()
        process.wait()


def share(clone, address, *options):
    """Makes a remote the clone's default, in the committed configuration, as the README says."""
    clone.run("dvc", "remote", "add", "--default", "shared", address)
    for name, value in options:
        clone.run("dvc", "remote", "modify", "shared", name, value)
    clone.commit("a shared remote")


def checked_out(clone, path):
    """A fresh git clone: no data, no cache, no run store."""
    clone.run("git", "clone", "-q", str(clone.path), str(path))
    return Clone(path, {"LOTTERY_EXECUTOR": "in-process", **S3})


def test_what_one_clone_pushes_to_s3_another_does_not_compute_again(clone, tmp_path, s3):
    clone.environment.update(S3)
    share(clone, "s3://lottery/cache", ("endpointurl", s3))
    clone.run("dvc", "push", "--run-cache")
    other = checked_out(clone, tmp_path / "other")
    assert other.repro("--pull") == []
    assert other.files("data") == clone.files("data")
    assert other.run("git", "status", "--porcelain").stdout == ""
    assert not (other.path / ".runs").exists()


def test_of_what_lies_in_a_folder_only_what_it_lacks_is_computed_again(clone, tmp_path):
    share(clone, str(tmp_path / "remote"))
    clone.run("dvc", "push", "--run-cache")
    # without the lock, results of the same inputs come from the run-cache
    without_lock = checked_out(clone, tmp_path / "without lock")
    (without_lock.path / "dvc.lock").unlink()
    assert without_lock.repro("--pull", "retrain") == []
    assert without_lock.files("data") == clone.files("data")

    other = checked_out(clone, tmp_path / "other")
    lock = (other.path / "dvc.lock").read_text()
    [masks] = set(re.findall(r"path: data/masks\n +hash: md5\n +md5: ([\w.]+)", lock))
    (tmp_path / "remote/files/md5" / masks[:2] / masks[2:]).unlink()
    assert other.repro("--pull") == ["extract_masks"]
    assert (other.path / "dvc.lock").read_text() == lock
