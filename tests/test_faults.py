"""Nothing is lost: kills, full disks, two writers, inputs that change while a stage computes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clones import ROOT, Clone

from benchmarks.faults import faulty_clone, reproduce
from lottery import code
from lottery.artifacts import files
from lottery.datasets.dataset import open_dataset
from lottery.errors import LotteryError
from lottery.running import machine, store
from lottery.tools.runs import kept

CAN_MOUNT = (
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    if shutil.which("unshare")
    else False
)
needs_mount = pytest.mark.skipif(
    not CAN_MOUNT, reason="needs unshare -rm (user namespaces) to mount small file systems"
)


def test_a_killed_pipeline_completes_with_the_same_bytes(tmp_path):
    reference = faulty_clone(tmp_path / "reference" / "clone")
    reference.repro(LOTTERY_CHECKPOINT_SECONDS="60")
    clone = faulty_clone(tmp_path / "killed" / "clone")
    kills = 0
    for moment, delay, mode in [
        ("Running stage 'fetch'", 0.6, "group"),
        ("Running stage 'train_dense'", 3.0, "group"),
        ("prune: 1/6", 0.1, "group"),
        ("prune: 4/6", 0.1, "dvc"),
        ("retrain:  2/18", 0.1, "group"),
        ("retrain:  6/18", 0.1, "worker"),
    ]:
        status, text, killed = reproduce(clone, moment, delay, mode)
        assert status in (None, 0), text
        kills += killed is not None
    assert kills >= 5
    assert reproduce(clone).status == 0
    assert (clone.path / "dvc.lock").read_bytes() == (reference.path / "dvc.lock").read_bytes()
    assert list((clone.path / ".runs").glob("*.checkpoint*")) == []
    assert list((clone.path / ".runs").glob(".*.tmp")) == []
    again = clone.run("dvc", "repro", "--force", "-s", "retrain", LOTTERY_WORKERS="1").stdout
    trained = [line for line in again.splitlines() if re.match(r"retrain: +\d+/", line)]
    assert len(trained) == 18
    assert all("from the run store" in line for line in trained)


def test_a_run_killed_at_80_percent_trains_only_the_rest(tmp_path):
    clone = faulty_clone(tmp_path / "clone")
    clone.change("seeds", [0])
    clone.change("train.iterations", 6000)
    clone.change("train.evaluate_every", 100)
    clone.repro("fetch")
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.train_dense"],
        cwd=clone.path,
        env=clone.env(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while _checkpointed(clone.path) < 4800:
        assert time.monotonic() < deadline
        assert stage.poll() is None
        time.sleep(0.01)
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    out = clone.run(sys.executable, "-m", "stages.train_dense").stdout
    begun, trained = map(
        int, re.search(r"resumed at iteration (\d+), (\d+) iterations", out).groups()
    )
    assert begun + trained == 6000
    assert begun >= 4800
    assert trained <= 0.3 * 6000


def _checkpointed(folder: Path) -> int:
    iterations = [0]
    for path in (folder / ".runs").glob("*.checkpoint"):
        facts = store.read_facts(path)
        if facts:
            iterations.append(facts["iteration"])
    return max(iterations)


KILL_AT = """
import os, signal, sys
import numpy as np
from lottery.running import store

os.environ["LOTTERY_RUNS"] = sys.argv[1]
left = int(sys.argv[2])
real = {"fsync": os.fsync, "replace": os.replace}

def counted(call):
    def wrapper(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper

def state(n):
    return {"weights": {"a": np.full(5000, n, np.float32)}, "history": {"loss": np.full(3, float(n))}}

store.save_checkpoint("f" * 64, state(1), {"name": "run", "iteration": 1})
store.save_checkpoint("f" * 64, state(2), {"name": "run", "iteration": 2})
os.fsync, os.replace = counted(os.fsync), counted(os.replace)
real_open = open
class Killing:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, content):
        global left
        left -= 1
        if left == 0:
            self.file.write(content[: len(content) // 2]); self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(content)
    def __getattr__(self, name): return getattr(self.file, name)
import lottery.artifacts.files
lottery.artifacts.files.open = lambda *a, **k: Killing(real_open(*a, **k)) if "wb" in a else real_open(*a, **k)
if sys.argv[3] == "checkpoint":
    store.save_checkpoint("f" * 64, state(3), {"name": "run", "iteration": 3})
else:
    store.save_finished("f" * 64, state(3), {"name": "run", "iteration": 3})
print("not killed")
"""


@pytest.mark.parametrize("what", ["checkpoint", "finished"])
def test_a_kill_at_any_write_fsync_or_rename_of_the_store_leaves_a_whole_state(
    tmp_path, what, monkeypatch
):
    killed = 0
    for moment in range(1, 20):
        folder = tmp_path / f"{what}-{moment}"
        done = subprocess.run(
            [sys.executable, "-c", KILL_AT, str(folder), str(moment), what],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        monkeypatch.setenv("LOTTERY_RUNS", str(folder))
        found = store.load_finished("f" * 64) or store.load_checkpoint("f" * 64)
        assert found is not None, moment
        groups, facts = found
        assert facts["iteration"] in (2, 3)
        assert (groups["weights"]["a"] == facts["iteration"]).all()
        assert not list(folder.glob("*.damaged"))
        finished = list(folder.glob("*.finished"))
        assert not finished or not list(folder.glob("*.checkpoint*"))  # a finished run needs none
        if done.returncode != -signal.SIGKILL:
            assert done.stdout == "not killed\n", done.stderr
            assert facts["iteration"] == 3
            break
        killed += 1
    assert killed >= 5  # write, fsync and rename, before and after
    assert done.returncode == 0


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(runs, capsys):
    key = "a" * 64
    for n in (1, 2):
        groups = {"weights": {"w": np.full(100, n, np.float32)}}
        store.save_checkpoint(key, groups, {"iteration": n})
    newest = store.file(key, store.CHECKPOINT)
    content = bytearray(newest.read_bytes())
    content[-7] ^= 1
    newest.write_bytes(content)
    groups, facts = store.load_checkpoint(key)
    assert facts == {"iteration": 1}
    assert (groups["weights"]["w"] == 1).all()
    assert "damaged" in capsys.readouterr().err
    assert store.file(key, store.CHECKPOINT + store.DAMAGED).exists()
    before = store.file(key, store.PREVIOUS)
    before.write_bytes(before.read_bytes()[:50])
    assert store.load_checkpoint(key) is None  # then from the start
    store.file(key, store.FINISHED).mkdir()
    assert store.load_finished(key) is None
    assert "Is a directory" in capsys.readouterr().err


def test_what_killed_writers_left_behind_goes_once_it_is_old(runs):
    runs.mkdir()
    old, new = runs / ".a.finished.12.tmp", runs / ".b.finished.34.tmp"
    for path, age in ((old, 2 * 86400), (new, 60)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    store.tidy()
    assert list(runs.iterdir()) == [new]


def test_a_second_stage_in_a_folder_waits_and_says_for_whom(clone):
    held = (
        "import time\nfrom stages import command\n"
        "with command._one_stage_at_a_time('prune'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", held]
    hold = subprocess.Popen(command, cwd=clone.path, stdout=subprocess.PIPE, text=True)
    assert hold.stdout.readline() == "held\n"
    command, pipe = [sys.executable, "-m", "stages.extract_masks"], subprocess.PIPE
    second = subprocess.Popen(command, cwd=clone.path, stdout=pipe, stderr=pipe, text=True)
    waiting = second.stderr.readline()
    who = rf"extract_masks: waiting: prune with pid {hold.pid} on \S+ has written in this folder"
    assert re.match(rf"{who} since 20", waiting)
    assert second.poll() is None
    hold.kill()  # its lock goes with it: nothing to delete by hand
    hold.wait()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert "masks" in out
    hold.stdout.close()


def test_the_store_is_listed_and_pruned(clone):
    def runs(*options, check=True):
        return clone.run(sys.executable, "-m", "lottery", "runs", *options, check=check)

    listed = runs().stdout
    assert re.match(r"RUN +SIZE +AGE +USED +STATUS +NAME\ndigits, lenet_300_100:\n", listed)
    assert listed.count("finished") == 2 + 4 + 8
    assert "seed 1, random_reinit, round 2" in listed
    assert "14 runs" in listed
    finished = (clone.path / ".runs").glob("*.finished")
    old = next(p for p in finished if store.read_facts(p)["name"] == "seed 0, ticket, round 1")
    os.utime(old, (time.time() - 86400 * 40, time.time() - 86400 * 40))
    clone.run(sys.executable, "-m", "stages.extract_masks")
    nothing = runs("--older-than", "30d", "--dry-run").stdout
    assert nothing.endswith("nothing was removed (--dry-run)\n")
    assert old.exists()
    clone.stage("retrain")  # whose runs are the latest results of this folder then, and used now
    assert runs("--older-than", "30d").stdout.endswith("0 runs removed\n")
    os.utime(old, (time.time() - 86400 * 40, time.time() - 86400 * 40))
    assert runs("--older-than", "30d", "--keep-used").stdout.endswith("0 runs removed\n")
    assert runs("--older-than", "30d").stdout.endswith("1 runs removed\n")
    assert not old.exists()
    for wrong in ("soon", "-1d"):
        assert runs(f"--older-than={wrong}", check=False).returncode == 2
    note, *_ = (clone.path / ".runs").glob("used-*-retrain.json")
    note.write_text("{}")
    done = runs("--keep-used", check=False)
    assert done.returncode == 1
    assert "no list of runs" in done.stderr
    assert len(list((clone.path / ".runs").glob("*.finished"))) == 13


def test_experiments_of_several_clones_train_each_run_once(clone, tmp_path):
    """As `dvc exp run --queue` does: a folder of its own for each, one run store for all."""
    other = Clone(tmp_path / "other", {"LOTTERY_RUNS": clone.env()["LOTTERY_RUNS"]})
    shutil.copytree(clone.path, other.path, symlinks=True)
    other.change("seeds", [1, 2])
    out = other.run("dvc", "repro", "retrain").stdout
    ran = re.findall(r"\d/\d (seed \d).*: (from the run store|40 iterations)", out)
    assert {how for seed, how in ran if seed == "seed 1"} == {"from the run store"}
    assert {how for seed, how in ran if seed == "seed 2"} == {"40 iterations"}
    assert len(ran) == 2 + 4 + 8
    ours, theirs = (pd.read_csv(c.path / "data/retrained/history.csv") for c in (clone, other))
    assert ours[ours["seed"] == 1].equals(
        theirs[theirs["seed"] == 1].set_axis(ours.index[ours["seed"] == 1])
    )


def edit(path, before, after):
    text = path.read_text()
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1))


def test_code_counts_by_what_it_means(clone):
    trainer = clone.path / "lottery/training/engine.py"
    edit(trainer, '"""The compiled part', '"""A comment.\n\nThe compiled part')
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert out.count(": from the run store") == 2
    edit(trainer, "/ 255.0", "/ 256.0")
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert out.count(": 40 iterations") == 2


CHANGES = {
    "params.yaml": (
        "learning_rate: 0.002",
        "learning_rate: 0.1",
        "params.yaml: train.learning_rate was 0.002 when the stage began, now 0.1",
    ),
    "lottery/training/schedule.py": (
        "train.learning_rate)",
        "2 * train.learning_rate)",
        "lottery.training.schedule: its code is not what it was",
    ),
}


@pytest.mark.parametrize("file", CHANGES)
def test_an_input_that_changes_while_a_stage_computes_is_no_result_of_it(clone, file):
    (before, after, named), log = CHANGES[file], clone.path / "log"
    clone.change("seeds", [0])
    clone.change("train.learning_rate", 0.002)
    clone.change("train.iterations", 2000)
    locked, original = (clone.path / "dvc.lock").read_text(), (clone.path / file).read_text()
    env = {**clone.env(), "LOTTERY_CHECKPOINT_SECONDS": "0"}
    with open(log, "w") as out:
        command = ["dvc", "repro", "train_dense"]
        process = subprocess.Popen(command, cwd=clone.path, env=env, stdout=out, stderr=out)
    while not list((clone.path / ".runs").glob("*.checkpoint")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    edit(clone.path / file, before, after)
    assert process.wait(120) != 0
    assert f"train_dense: {named}" in log.read_text()
    assert (clone.path / "dvc.lock").read_text() == locked
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert out.count(": 2000 iterations") == 1  # at what stands there now
    (clone.path / file).write_text(original)
    out = clone.run("dvc", "repro", "train_dense").stdout
    assert out.count(": from the run store") == 1


def test_a_worker_that_has_other_code_refuses(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    now = code.of_stage("stages.prune")
    before = [(n, m._replace(sha256="0") if n == "lottery.masks" else m) for n, m in now.modules]
    machine.prepare.cache_clear()
    with pytest.raises(LotteryError, match=r"^lottery.masks: changed since the stage began"):
        machine.prepare(1, code.Code(tuple(before), now.run), 0)


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_an_impossible_checkpoint_interval_is_refused_at_once(clone, value):
    done = clone.run(
        sys.executable, "-m", "stages.prune", check=False, LOTTERY_CHECKPOINT_SECONDS=value
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == f"prune: LOTTERY_CHECKPOINT_SECONDS: got {value!r}; accepted: a number from 0 up\n"
    )


def in_namespace(clone, script):
    """Runs a shell script in a mount namespace of its own, in the clone."""
    return clone.run("unshare", "-rm", "sh", "-ec", script, check=False)


@needs_mount
def test_a_full_disk_is_named_and_the_dataset_of_before_stays(clone):
    clone.change("data.name", "mnist5k")  # 4 MB: more than fits
    done = in_namespace(
        clone,
        """
        cp -r data /tmp/before-$$ ; mount -t tmpfs -o size=1m tmpfs data ; cp -r /tmp/before-$$/dataset data/
        python -m stages.fetch || echo "exit $?"
        diff -r data/dataset /tmp/before-$$/dataset && echo intact
        ls -A data ; rm -r /tmp/before-$$
        """,
    )
    assert re.search(
        r"fetch: data/\.dataset\.partial/\S+: cannot be written: No space left on device",
        done.stderr,
    )
    assert done.stdout.split("\n")[:4] == ["exit 1", "intact", "dataset", ""]
    assert "Traceback" not in done.stderr


@needs_mount
def test_a_full_run_store_is_named_and_the_artifacts_of_before_stay(clone):
    clone.change("train.learning_rate", 0.002)
    before = (clone.path / "data/dense/history.csv").read_bytes()
    done = in_namespace(
        clone, "mount -t tmpfs -o size=100k tmpfs .runs\npython -m stages.train_dense"
    )
    assert done.returncode == 1
    assert re.search(
        r"train_dense: seed 0, dense: \S+\.runs/\S+: cannot be written: No space left on device",
        done.stderr,
    )
    assert "Traceback" not in done.stderr
    assert (clone.path / "data/dense/history.csv").read_bytes() == before
    assert list((clone.path / "data").glob(".*partial")) == []


@needs_mount
@pytest.mark.parametrize(
    ("folder", "stage"), [("data", "extract_masks"), (".runs", "prune"), ("reports", "report")]
)
def test_a_read_only_folder_is_named(clone, folder, stage):
    done = in_namespace(
        clone,
        f"mount --bind {folder} {folder}\nmount -o remount,bind,ro {folder}\npython -m stages.{stage}",
    )
    assert done.returncode == 1
    assert re.search(
        rf"{stage}: \S*{re.escape(folder)}\S*: .*cannot be written: Read-only file system",
        done.stderr,
    )
    assert "Traceback" not in done.stderr


def test_any_flipped_byte_in_an_artifact_gives_a_named_error_or_the_same_result(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    generator = random.Random(0)
    readers = {
        "data/dense/seed-0/trained.safetensors": files.read_tensors,
        "data/pruned/seed-1/round-02.safetensors": files.read_masked_weights,
        "data/masks/seed-0/round-01.safetensors": files.read_mask,
        "data/dataset/images.npy": lambda path: open_dataset(path.parent),
        "data/dataset/dataset.json": lambda path: open_dataset(path.parent),
    }
    for name, read in readers.items():
        path = clone.path / name
        good, named = path.read_bytes(), 0
        for _ in range(40):
            first = generator.randrange(min(len(good), 400))
            place = generator.choice([first, generator.randrange(len(good))])
            content = bytearray(good)
            content[place] ^= 1 << generator.randrange(8)
            path.write_bytes(content)
            try:
                read(Path(name))
            except LotteryError:
                named += 1
        path.write_bytes(good)
        read(Path(name))
        assert named == 40


def test_a_run_that_ends_while_the_store_is_listed_is_left_out(runs, monkeypatch):
    stays, goes = (runs / f"{letter * 64}.checkpoint" for letter in "ab")
    for path in (stays, goes):
        store.save(
            path, {"weights": {"w": np.ones(3, np.float32)}}, {"name": path.name[0], "iteration": 1}
        )
    reading = store.read_facts

    def ends_after(path):
        facts = reading(path)
        goes.unlink(missing_ok=True)
        return facts

    monkeypatch.setattr(store, "read_facts", ends_after)
    assert [run.name for run in kept()] == ["a"]
