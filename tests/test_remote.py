"""A shared cache: pushed from one clone, pulled in another, on a folder and on S3 (an emulator)."""

import re

import pytest
from clones import Clone

S3 = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture
def s3():
    """A client of an S3 emulator on this machine, with a bucket named lottery."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    named = {name.lower(): S3[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    address = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **named)
    client.create_bucket(Bucket="lottery")
    yield client
    server.stop()


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


def test_of_what_one_clone_pushes_to_s3_another_computes_only_what_is_lacking(clone, tmp_path, s3):
    clone.environment.update(S3)
    share(clone, "s3://lottery/cache", ("endpointurl", s3.meta.endpoint_url))
    clone.run("dvc", "push", "--run-cache")
    lock = (clone.path / "dvc.lock").read_text()
    [masks] = set(re.findall(r"path: data/masks\n +hash: md5\n +md5: ([\w.]+)", lock))
    s3.delete_object(Bucket="lottery", Key=f"cache/files/md5/{masks[:2]}/{masks[2:]}")
    other = checked_out(clone, tmp_path / "other")
    (other.path / "dvc.lock").unlink()  # results of the same inputs come from the run-cache
    assert other.repro("--pull", "retrain") == ["extract_masks"]
    assert other.files("data") == clone.files("data")
    assert not (other.path / ".runs").exists()
    other.run("git", "checkout", "dvc.lock")
    assert other.repro("--pull") == []
    assert other.run("git", "status", "--porcelain").stdout == ""
