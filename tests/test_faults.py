"""Nothing is lost: kills, full disks, two writers, inputs that change while a stage computes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from clones import ROOT, Clone, make_clone

from benchmarks.faults import reproduce
from lottery import code, params
from lottery.__main__ import main
from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.running import machine, store
from lottery.tools import check
from lottery.tools.runs import kept

UNSHARE = ["unshare", "-rm"]
CANNOT = shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"]).returncode
needs_mount = pytest.mark.skipif(CANNOT, reason="needs unshare -rm to mount small file systems")


def test_a_killed_pipeline_completes_with_the_bytes_of_one_process(
    finished_clone, tmp_path, capsys
):
    """With two workers, and whatever a user's own settings are."""
    clone = make_clone(tmp_path / "clone")
    keras = {"floatx": "float64", "epsilon": 0.001, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(keras))
    settings = {"KERAS_HOME": str(tmp_path), "LOTTERY_WORKERS": "2"}
    clone.environment = settings | {"LOTTERY_CHECKPOINT_SECONDS": "0"}
    kills = 0
    for moment, delay, mode in [
        ("Running stage 'fetch'", 0.6, "group"),
        ("Running stage 'train_dense'", 3.0, "group"),
        ("prune: 1/4", 0.05, "dvc"),
        ("retrain: 2/8", 0.0, "group"),
        ("retrain: 4/8", 0.0, "worker"),
    ]:
        status, text, killed = reproduce(clone, moment, delay, mode, "retrain")
        assert status in (None, 0), text
        kills += killed is not None
    assert kills >= 4
    assert status == 0  # of the last, whose worker alone was killed
    left = [p for p in (clone.path / ".runs").glob("*.checkpoint*") if p.suffix != ".tmp"]
    assert left == []  # and what a killed writer leaves goes once it is old
    assert clone.files("data") == finished_clone.files("data")


def test_a_run_killed_at_80_percent_trains_only_the_rest(clone, capsys):
    for key, value in {"iterations": 4000, "evaluate_every": 100}.items():
        clone.change(f"train.{key}", value)
    clone.change("seeds", [0])
    clone.environment |= {"LOTTERY_CHECKPOINT_SECONDS": "0"}
    command = [sys.executable, "-m", "stages.train_dense"]
    stage = subprocess.Popen(command, cwd=clone.path, env=clone.env(), stdout=subprocess.DEVNULL)
    while _checkpointed(clone.path) < 3200:
        assert stage.poll() is None
        time.sleep(0.01)
    stage.kill()
    stage.wait()
    clone.stage("train_dense")
    said = re.search(r"resumed at iteration (\d+), (\d+) iterations", capsys.readouterr().out)
    begun, trained = map(int, said.groups())
    assert begun + trained == 4000
    assert begun >= 3200


def _checkpointed(folder: Path) -> int:
    facts = map(store.read_facts, (folder / ".runs").glob("*.checkpoint"))
    return max((one["iteration"] for one in facts if one), default=0)


KILL_AT = """
import builtins, os, signal, sys
import numpy as np
import lottery.artifacts.files
from lottery.running import store

folder, save = sys.argv[1], getattr(store, sys.argv[2])
left = 0  # moments until the kill: before and after an fsync or a rename, within a write

def moment():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(call):
    def wrapper(*arguments):
        moment()
        result = call(*arguments)
        moment()
        return result
    return wrapper

class Killing:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, content):
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        moment()
        return half + self.file.write(content[half:])

def opened(*arguments, **options):
    file = builtins.open(*arguments, **options)
    return Killing(file) if "wb" in arguments else file

def state(n):
    return {"weights": {"a": np.full(5000, n, np.float32)}, "history": {"loss": np.full(3, float(n))}}

def facts(n):
    return {"name": "run", "iteration": n}

for number in range(1, 20):
    if os.fork() == 0:
        os.environ["LOTTERY_RUNS"] = f"{folder}/{number}"
        for n in (1, 2):
            store.save_checkpoint("f" * 64, state(n), facts(n))
        left, os.fsync, os.replace = number, counted(os.fsync), counted(os.replace)
        lottery.artifacts.files.open = opened
        save("f" * 64, state(3), facts(3))
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
    print(number, "killed" if killed else "saved", flush=True)
    if not killed:
        break
"""


@pytest.mark.parametrize("save", ["save_checkpoint", "save_finished"])
def test_a_kill_at_any_write_fsync_or_rename_of_the_store_leaves_a_whole_state(
    tmp_path, save, monkeypatch
):
    command = [sys.executable, "-c", KILL_AT, str(tmp_path), save]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    moments = [line.split() for line in done.stdout.splitlines()]
    assert len(moments) > 5  # within a write, before and after fsync and rename
    assert [how for _, how in moments] == ["killed"] * (len(moments) - 1) + ["saved"], done.stderr
    for number, how in moments:
        folder = tmp_path / number
        monkeypatch.setenv("LOTTERY_RUNS", str(folder))
        groups, facts = store.load_finished("f" * 64) or store.load_checkpoint("f" * 64)
        assert facts["iteration"] in ((3,) if how == "saved" else (2, 3))
        assert (groups["weights"]["a"] == facts["iteration"]).all()
        assert not list(folder.glob("*.damaged"))
        finished = list(folder.glob("*.finished"))
        assert not finished or not list(folder.glob("*.checkpoint*"))  # a finished run needs none


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
    store.file(key, store.PREVIOUS + store.DAMAGED).unlink()
    before.mkdir()
    for n in (3, 4):  # a folder in the way costs the checkpoint before, nothing else
        store.save_checkpoint(key, groups, {"iteration": n})
        assert store.load_checkpoint(key)[1] == {"iteration": n}


@pytest.mark.parametrize("ending", [store.FINISHED, store.CHECKPOINT])
def test_a_file_of_another_run_is_set_aside(runs, capsys, ending):
    for key in ("a" * 64, "b" * 64):
        store.save(store.file(key, ending), {"weights": {"w": np.zeros(3)}}, {"iteration": 1})
    os.replace(store.file("a" * 64, ending), store.file("b" * 64, ending))
    load = store.load_finished if ending == store.FINISHED else store.load_checkpoint
    assert load("a" * 64) is None  # which is no more there, and nothing to speak of
    assert capsys.readouterr().err == ""
    assert load("b" * 64) is None
    assert "of another run, aaaaaaaa; set aside" in capsys.readouterr().err


def test_what_killed_writers_left_behind_goes_once_it_is_old(runs):
    runs.mkdir()
    old, new = (runs / f".{name}.finished.{name * 16}.tmp" for name in "ab")
    others = runs / ".mine.tmp"
    for path, age in ((old, 2 * 86400), (new, 60), (others, 2 * 86400)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    store.tidy()
    assert {*runs.iterdir()} == {new, others}


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


def test_the_store_is_listed_and_pruned(clone, monkeypatch, capsys):
    monkeypatch.chdir(clone.path)
    monkeypatch.setenv("LOTTERY_RUNS", clone.env()["LOTTERY_RUNS"])

    def listed(*options):
        capsys.readouterr()
        main(["runs", *options])
        return capsys.readouterr().out

    heading = r"RUN +SIZE +AGE +USED +STATUS +NAME\ndigits, lenet_300_100:\n"
    assert re.match(heading, listed())
    assert listed().count("finished") == 2 + 4 + 8
    assert "seed 1, random_reinit, round 2" in listed()
    assert "14 runs" in listed()
    finished = (clone.path / ".runs").glob("*.finished")
    old = next(p for p in finished if store.read_facts(p)["name"] == "seed 0, ticket, round 1")
    month = time.time() - 86400 * 40
    os.utime(old, (month, month))
    nothing = listed("--older-than", "30d", "--dry-run")
    assert nothing.endswith("nothing was removed (--dry-run)\n")
    assert old.exists()
    clone.stage("retrain")  # whose runs are the latest results of this folder then, and used now
    assert listed("--older-than", "30d").endswith("0 runs removed\n")
    os.utime(old, (month, month))
    assert listed("--older-than", "30d", "--keep-used").endswith("0 runs removed\n")
    assert listed("--older-than", "30d").endswith("1 runs removed\n")
    assert not old.exists()
    note, *_ = (clone.path / ".runs").glob("used-*-retrain.json")
    note.write_text(json.dumps({"folder": str(clone.path), "runs": "a" * 64}))
    for wrong, status in [("--older-than=soon", 2), ("--older-than=-1d", 2), ("--keep-used", 1)]:
        with pytest.raises(SystemExit) as end:
            listed(wrong)
        assert end.value.code == status
    assert "no list of runs" in capsys.readouterr().err
    assert len(list((clone.path / ".runs").glob("*.finished"))) == 13


def test_experiments_of_several_clones_train_each_run_once(clone, tmp_path, capsys):
    """As `dvc exp run --queue` does: a folder of its own for each, one run store for all."""
    other = Clone(tmp_path / "other", {"LOTTERY_RUNS": clone.env()["LOTTERY_RUNS"]})
    shutil.copytree(clone.path, other.path, symlinks=True)
    other.change("seeds", [1, 2])
    other.stage("train_dense", "prune", "extract_masks", "retrain")
    said = capsys.readouterr().out
    ran = re.findall(r"\d/\d (seed \d).*: (from the run store|40 iterations)", said)
    assert {how for seed, how in ran if seed == "seed 1"} == {"from the run store"}
    assert {how for seed, how in ran if seed == "seed 2"} == {"40 iterations"}
    assert len(ran) == 2 + 4 + 8
    tables = [pd.read_csv(c.path / "data/retrained/history.csv") for c in (clone, other)]
    ours, theirs = (table[table["seed"] == 1].reset_index(drop=True) for table in tables)
    assert ours.equals(theirs)
    for folder in (files.DENSE, files.PRUNED, files.MASKS):  # of seed 0 nothing stays
        assert {path.name for path in (other.path / folder).glob("seed-*")} == {"seed-1", "seed-2"}
    for table in ("dense/history.csv", "retrained/history.csv", "masks/density.csv"):
        assert set(pd.read_csv(other.path / "data" / table)["seed"]) == {1, 2}


# Code and parameters


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_an_input_that_changes_while_a_stage_computes_is_no_result_of_it(clone, capsys):
    clone.change("seeds", [0])
    clone.change("train.learning_rate", 0.002)
    clone.change("train.iterations", 2000)
    clone.change("train.evaluate_every", 100)
    changes = {
        "params.yaml": ("learning_rate: 0.002", "learning_rate: 0.1"),
        "lottery/training/schedule.py": ("train.learning_rate)", "2 * train.learning_rate)"),
    }
    original = {name: (clone.path / name).read_text() for name in (*changes, "dvc.lock")}
    clone.environment |= {"LOTTERY_CHECKPOINT_SECONDS": "0"}
    log, command = clone.path / "log", ["dvc", "repro", "train_dense"]
    with open(log, "w") as out:
        process = subprocess.Popen(command, cwd=clone.path, env=clone.env(), stdout=out, stderr=out)
    while not list((clone.path / ".runs").glob("*.checkpoint")):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    for name, (before, after) in changes.items():
        edit(clone.path / name, before, after)
    assert process.wait(120) != 0
    said = log.read_text()
    changed = "params.yaml: train.learning_rate was 0.002 when the stage ran, now 0.1"
    assert f"train_dense: {changed}" in said
    assert "train_dense: lottery.training.schedule: its code is not what it was" in said
    assert (clone.path / "dvc.lock").read_text() == original["dvc.lock"]
    for name in changes:
        (clone.path / name).write_text(original[name])
    clone.stage("train_dense")  # the run is kept as what it is
    assert capsys.readouterr().out.count(": from the run store") == 1


@pytest.mark.parametrize("steps", [None, {"iterations": [20], "factor": 0.5}])
def test_a_section_that_comes_or_goes_while_a_stage_computes_is_seen(clone, monkeypatch, steps):
    other = {"iterations": [20], "factor": 0.5} if steps is None else None
    clone.change("train.learning_rate_steps", steps)
    edit(clone.path / "dvc.yaml", "stages:\n", "stages:\n  own:\n    cmd: echo\n")  # is let be
    meanwhile = partial(clone.change, "train.learning_rate_steps", other)
    monkeypatch.setattr("stages.train_dense.main", lambda stage: meanwhile())
    values = (json.dumps(value) for value in (steps, other))
    why = "train.learning_rate_steps was {} when the stage ran, now {}".format(*values)
    with pytest.raises(LotteryError, match=re.escape(why)):
        clone.stage("train_dense")


def test_a_source_that_changes_while_fetch_reads_it_is_told_without_secrets(clone, monkeypatch):
    clone.change("data.name", "arrays")
    for now, text in (("b.npz?sig=1", 'b.npz"\n'), ("a.npz?sig=2", 'a.npz", with other secrets\n')):
        clone.change("data.source", "https://me:word@example.org/a.npz?sig=1")
        meanwhile = partial(clone.change, "data.source", f"https://me:word@example.org/{now}")
        monkeypatch.setattr("stages.fetch.main", lambda stage, change=meanwhile: change())
        urls = (
            f'was "https://example.org/a.npz" when the stage ran, now "https://example.org/{text}'
        )
        with pytest.raises(LotteryError, match=urls):
            clone.stage("fetch")


@pytest.mark.parametrize("how", ["changed", "new", "gone"])
def test_a_file_that_changes_while_a_stage_reads_it_is_seen(clone, monkeypatch, how):
    path = clone.path / "mine/widths.json"
    if how != "new":
        path.write_text("[20]")
    change = path.unlink if how == "gone" else lambda: path.write_text("[30]")
    monkeypatch.setattr("stages.train_dense.main", lambda stage: change())
    with pytest.raises(LotteryError, match=r"mine/widths\.json: was written, made or removed"):
        clone.stage("train_dense")


def test_a_compiled_module_that_belongs_to_another_user_is_let_be(clone, monkeypatch):
    def unlink(path, missing_ok=False, real=Path.unlink):
        if path.suffix == ".pyc":
            raise PermissionError(path)
        real(path, missing_ok)

    clone.change("model.name", "mine.example:narrow")
    monkeypatch.syspath_prepend(clone.path)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr("lottery.tickets.own.check", lambda *_, **__: None)
    monkeypatch.setattr("stages.train_dense.main", lambda stage: None)
    clone.stage("train_dense")


@pytest.mark.parametrize("folder", ["mine", "data/own", "tickets"])
def test_a_dvc_repository_among_the_inputs_is_refused_as_dvc_does_not_look_into_it(
    clone, monkeypatch, folder
):
    (clone.path / folder / "registry/.dvc").mkdir(parents=True)
    stage = {"mine": "train_dense", "data/own": "fetch", "tickets": "prune"}[folder]
    with pytest.raises(LotteryError, match=f"{folder}/registry: a DVC repository of its own"):
        clone.stage(stage)
    monkeypatch.chdir(clone.path)
    with pytest.raises(LotteryError, match=f"{folder}/registry: a DVC repository of its own"):
        check.results_of(params.load())


def test_a_worker_that_has_other_code_refuses(clone, monkeypatch):
    monkeypatch.chdir(clone.path)
    now = code.of_stage("stages.prune")
    before = [(n, m._replace(sha256="0") if n == "lottery.masks" else m) for n, m in now.modules]
    machine._other_code.cache_clear()
    with pytest.raises(LotteryError, match=r"^lottery.masks: changed since the stage began"):
        machine.prepare(1, code.Code(tuple(before), now.run), 0)


@pytest.mark.parametrize("value", ["-1", "soon", "nan", "inf"])
def test_an_impossible_checkpoint_interval_is_refused_at_once(clone, value):
    clone.environment["LOTTERY_CHECKPOINT_SECONDS"] = value
    said = f"LOTTERY_CHECKPOINT_SECONDS: got {value!r}; accepted: a number from 0 up"
    with pytest.raises(LotteryError, match=f"^{said}$"):
        clone.stage("prune")


# File systems that are full or read-only


READ_ONLY = [("data", "extract_masks"), (".runs", "train_dense"), ("reports", "report")]


def in_namespace(clone, script):
    """Runs a shell script in a mount namespace of its own, in the clone."""
    return clone.run(*UNSHARE, "sh", "-ec", script, check=False)


@needs_mount
def test_a_full_disk_is_named_and_the_dataset_of_before_stays(clone):
    done = in_namespace(
        clone,
        """
        cp -r data /tmp/before-$$ ; mount -t tmpfs -o size=200k tmpfs data ; cp -r /tmp/before-$$/dataset data/
        python -m stages.fetch || echo "exit $?"
        diff -r data/dataset /tmp/before-$$/dataset && echo intact
        ls -A data ; rm -r /tmp/before-$$
        """,
    )
    named = r"fetch: data/\.dataset\.partial/\S+: cannot be written: No space left on device"
    assert re.search(named, done.stderr)
    assert done.stdout.split("\n")[:4] == ["exit 1", "intact", "dataset", ""]
    assert "Traceback" not in done.stderr


@needs_mount
def test_a_full_run_store_is_named_and_the_artifacts_of_before_stay(clone):
    clone.change("train.learning_rate", 0.002)
    before = clone.files("data")
    script = "mount -t tmpfs -o size=100k tmpfs .runs\npython -m stages.train_dense"
    done = in_namespace(clone, script)
    assert done.returncode == 1
    named = r"train_dense: seed 0, dense: \S+\.runs/\S+: cannot be written: No space left on device"
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr
    assert clone.files("data") == before


@needs_mount
@pytest.mark.parametrize(("folder", "stage"), READ_ONLY)
def test_a_read_only_folder_is_named(clone, folder, stage):
    mount = f"mount --bind {folder} {folder}\nmount -o remount,bind,ro {folder}"
    done = in_namespace(clone, f"{mount}\npython -m stages.{stage}")
    assert done.returncode == 1
    named = rf"{stage}: \S*{re.escape(folder)}\S*: .*cannot be written: Read-only file system"
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr


def test_a_run_that_ends_while_the_store_is_listed_is_left_out(runs, monkeypatch):
    stays, goes = (runs / f"{letter * 64}.checkpoint" for letter in "ab")
    groups = {"weights": {"w": np.ones(3, np.float32)}}
    for path in (stays, goes):
        store.save(path, groups, {"name": path.name[0], "iteration": 1})
    reading = store.read_facts

    def ends_after(path):
        facts = reading(path)
        goes.unlink(missing_ok=True)
        return facts

    monkeypatch.setattr(store, "read_facts", ends_after)
    assert [run.name for run in kept()] == ["a"]
