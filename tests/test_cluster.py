"""Runs on a Ray cluster: two nodes on this machine, processes and nodes killed, the driver killed and interrupted."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from clones import ROOT, make_clone
from test_execution import (
    Described,
    Draw,
    Echo,
    Fail,
    KillOwnWorker,
    Meet,
    Sleep,
    chain_of,
    drawn,
    nothing,
    refuse,
)

from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.running import cluster, store
from lottery.running.executors import chosen, execute

PATIENCE = 120  # seconds, at most, for something that takes a few on an idle machine


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes of one CPU each, whose workers find the tasks of these tests, and a head that only drives."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: starved by the tests beside it
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        made.computing = [made.add_node(num_cpus=1) for _ in range(2)]
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def on_ray(two_nodes, monkeypatch, tmp_path):
    """An executor on the cluster, for a stage that runs in an empty folder."""
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    monkeypatch.chdir(tmp_path)
    return lambda prepare=nothing: chosen(prepare, 1)


def test_results_are_those_of_a_local_run_and_tasks_run_in_other_processes(on_ray):
    results = [[] for _ in range(6)]
    chains = [chain_of([Draw(s, r) for r in range(2)] + [Echo(s)], results[s]) for s in range(6)]
    execute(chains, on_ray(), title="t", runs=12, iterations=120)
    for s, (first, second, (value, process)) in enumerate(results):
        assert [first, second, value] == [drawn(s, 0), drawn(s, 1), s]
        assert process != os.getpid()


def test_runs_that_fill_a_node_each_are_computed_on_both(on_ray, tmp_path):
    results = [[], []]
    chains = [
        chain_of([Meet(tmp_path, *"ab")], results[0]),
        chain_of([Meet(tmp_path, *"ba")], results[1]),
    ]
    execute(chains, on_ray(), title="t", runs=2, iterations=2)
    assert results == [[True], [True]]


def test_a_run_that_is_too_large_for_any_node_is_said_to_wait(on_ray, monkeypatch):
    monkeypatch.setenv("LOTTERY_CPUS_PER_RUN", "2")  # the two nodes have one each
    executor = on_ray()
    try:
        assert executor.open(1).endswith(
            "a run takes 2 CPU, 0 GPU); waiting for a node with that much"
        )
    finally:
        executor.close()


class Lock(Described):
    """Its result cannot be sent to another process."""

    name, iterations = "seed 3, ticket, round 1", 10

    def __call__(self, report):
        return threading.Lock()


def test_a_failing_task_ends_its_chain_and_the_others_finish(on_ray, capfd):
    results = []
    chains = [
        chain_of([Fail(LotteryError("data/masks: damaged"))], []),
        chain_of([Lock()], []),
        chain_of([Draw(1)], results),
    ]
    with pytest.raises(LotteryError) as error:
        execute(chains, on_ray(), title="t", runs=3, iterations=30)
    assert "seed 1, ticket, round 3: data/masks: damaged" in str(error.value)
    assert "seed 3, ticket, round 1: " in str(error.value)
    assert "1 of 3 runs finished" in str(error.value)
    assert results == [drawn(1, 0)]
    assert "taken up again" not in capfd.readouterr().out


def test_a_task_that_kills_its_worker_is_taken_up_again_twice(on_ray, tmp_path, capfd):
    results = []
    execute(
        [chain_of([KillOwnWorker(tmp_path / "some", 2)], results)],
        on_ray(),
        title="t",
        runs=1,
        iterations=10,
    )
    assert results == [3]
    assert capfd.readouterr().out.count("its worker died (WorkerCrashedError); taken up again") == 2
    with pytest.raises(LotteryError, match=r"its worker died 3 times \(WorkerCrashedError\)"):
        execute(
            [chain_of([KillOwnWorker(tmp_path / "all", 9)], [])],
            on_ray(),
            title="t",
            runs=1,
            iterations=10,
        )


def test_a_worker_that_cannot_be_prepared_fails_its_tasks_and_says_why(on_ray):
    with pytest.raises(LotteryError, match="could not start") as error:
        execute([chain_of([Draw(0)], [])], on_ray(refuse), title="t", runs=1, iterations=10)
    assert "RuntimeError: no such device" in str(error.value)


class Store:
    """A task that keeps a checkpoint and looks whether it is there."""

    name, iterations = "store", 0

    def __call__(self, report):
        store.save_checkpoint(
            "f" * 64, {"weights": {"w": files.np.ones(3, "float32")}}, {"iteration": 1}
        )
        return store.load_checkpoint("f" * 64)[1], os.getcwd()


def test_what_a_task_keeps_lies_in_the_drivers_run_store(on_ray, tmp_path):
    results = []
    execute([chain_of([Store()], results)], on_ray(), title="t", runs=0, iterations=0)
    facts, folder = results[0]
    assert facts == {"iteration": 1}
    assert folder != str(tmp_path)
    assert [path.name for path in (tmp_path / ".runs").iterdir()] == ["f" * 64 + ".checkpoint"]


class Finish:
    """A task that keeps a finished run."""

    name, iterations = "finish", 0

    def __call__(self, report):
        store.save_finished("f" * 64, {"weights": {"w": files.np.ones(3, "float32")}}, {})


def test_a_run_store_that_cannot_be_written_fails_the_task_in_one_line(on_ray, tmp_path):
    (tmp_path / ".runs").write_text("a file where the folder should be")
    with pytest.raises(LotteryError) as error:
        execute([chain_of([Finish()], [])], on_ray(), title="t", runs=0, iterations=0)
    assert re.match(
        r"finish: .runs/f+.finished: cannot be written: .*; what was there before is intact\n",
        str(error.value),
    )


def test_a_dataset_arrives_whole_once_on_each_node(monkeypatch, tmp_path):
    import numpy as np

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(
        cluster, "ray_library", lambda: type("Ray", (), {"get": staticmethod(lambda value: value)})
    )
    monkeypatch.chdir(tmp_path)
    content = {"dataset.json": b"{}", "train_labels.npy": b"labels"}
    put = {name: np.frombuffer(value, np.uint8) for name, value in content.items()}
    cluster._settle(put)
    at = {path.name: path.stat().st_mtime_ns for path in Path("data/dataset").iterdir()}
    assert {name: Path("data/dataset", name).read_bytes() for name in at} == content
    cluster._settle(put)
    assert {path.name: path.stat().st_mtime_ns for path in Path("data/dataset").iterdir()} == at
    Path("data/dataset/train_labels.npy").unlink()
    cluster._settle(put)
    assert Path("data/dataset/train_labels.npy").read_bytes() == b"labels"


def workers(two_nodes):
    """The processes that compute tasks on the cluster's nodes."""
    raylets = [
        psutil.Process(node.all_processes["raylet"][0].process.pid) for node in two_nodes.computing
    ]
    return [
        p
        for raylet in raylets
        for p in raylet.children(recursive=True)
        if "ray::_compute" in " ".join(p.cmdline())
    ]


LONGER = """\
seeds: [0, 1]
data: {name: digits, validation_size: 250}
model: {name: lenet_300_100, initializer: glorot_normal}
train: {optimizer: adam, learning_rate: 1.2e-3, batch_size: 50, iterations: 4000, evaluate_every: 200}
prune: {rounds: 2, rates: {conv: 0.1, dense: 0.2, output: 0.1}, rewind_iteration: 0}
retrain: {variants: [ticket, random_reinit], rounds: [2]}
report: {margin: 0.005, iteration_margin: 0.1, confidence: 0.95}
"""


@pytest.mark.timeout(1200)
def test_the_bytes_are_those_of_a_local_run_whatever_dies(two_nodes, tmp_path):
    """A worker in train_dense, both nodes in prune and in retrain, each time with new ones added, then the driver."""
    local, ray = make_clone(tmp_path / "local"), make_clone(tmp_path / "ray")
    for clone in (local, ray):
        (clone.path / "params.yaml").write_text(LONGER)
    local.repro()
    expected = (local.path / "dvc.lock").read_bytes()

    environment = {
        "LOTTERY_EXECUTOR": "ray",
        "RAY_ADDRESS": two_nodes.address,
        "LOTTERY_CHECKPOINT_SECONDS": "0",
    }
    env = {**ray.env(), **environment}
    log = tmp_path / "log"

    def start():
        with open(log, "a") as output:
            return subprocess.Popen(
                ["dvc", "repro"],
                cwd=ray.path,
                env=env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def under_way(what):
        def seen():
            entries = store.entries(ray.path / ".runs")
            return any(what in e.name and re.match("at [1-9]", e.status) for e in entries)

        wait_for(seen, lambda: f"{what} in {store.entries(ray.path / '.runs')}\n{log.read_text()}")

    def replace_nodes():
        for node in two_nodes.computing:
            two_nodes.remove_node(node, allow_graceful=False)
        two_nodes.computing = [two_nodes.add_node(num_cpus=1) for _ in range(2)]

    process = start()
    try:
        under_way("dense")
        workers(two_nodes)[0].kill()
        under_way("pruning")
        replace_nodes()
        under_way("ticket")
        replace_nodes()
        wait_for(
            lambda: "taken up again" in log.read_text().partition("Running stage 'retrain'")[2],
            log.read_text,
        )
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start()
        assert process.wait(3 * PATIENCE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text()
    assert (ray.path / "dvc.lock").read_bytes() == expected
    assert said.count("taken up again") >= 3, said
    assert "resumed at iteration" in said
    assert "Traceback" not in said


def drive(folder):
    """What the driver below runs: three chains that never end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        chains = [chain_of([Sleep(folder, f"sleep {n}")], []) for n in range(3)]
        execute(chains, chosen(nothing, 1), title="t", runs=3, iterations=30)
    except KeyboardInterrupt:
        sys.exit(130)


def test_ctrl_c_cancels_the_tasks_and_leaves_the_cluster_clean(two_nodes, tmp_path):
    code = f"import pathlib, test_cluster; test_cluster.drive(pathlib.Path({str(tmp_path)!r}))"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "LOTTERY_EXECUTOR": "ray",
        "RAY_ADDRESS": two_nodes.address,
    }
    with open(tmp_path / "output", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, (tmp_path / "output").read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
    sleeping = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(map(psutil.pid_exists, sleeping)), lambda: workers(two_nodes))
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize("value", ["-1", "two", "1.5", "nan", "2000"])
def test_a_bad_share_of_a_run_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("LOTTERY_CPUS_PER_RUN", value)
    with pytest.raises(LotteryError) as error:
        chosen(nothing, 1)
    assert str(error.value).startswith(f"LOTTERY_CPUS_PER_RUN: got {value!r}; accepted: ")


def test_fractions_of_a_gpu_are_accepted(monkeypatch):
    monkeypatch.setenv("LOTTERY_GPUS_PER_RUN", "0.25")
    assert cluster.resource("LOTTERY_GPUS_PER_RUN", 0) == 0.25
    assert cluster.resource("LOTTERY_CPUS_PER_RUN", 4) == 4


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LotteryError, match="Ray is not installed: pip install"):
        chosen(nothing, 1)


def test_an_address_without_a_cluster_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        LotteryError, match=r"RAY_ADDRESS: 127\.0\.0\.1:1: no cluster answers there"
    ) as error:
        execute([chain_of([Draw(0)], [])], chosen(nothing, 1), title="t", runs=1, iterations=10)
    assert len(str(error.value).splitlines()) == 1


def test_the_address_of_a_ray_client_is_refused_with_the_way_to_go(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(LotteryError, match="from one of its nodes"):
        execute([chain_of([Draw(0)], [])], chosen(nothing, 1), title="t", runs=1, iterations=10)
