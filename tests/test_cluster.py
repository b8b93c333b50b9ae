"""Tasks on a Ray cluster of two nodes here: workers, nodes and the driver killed, interrupted."""

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from clones import ROOT, STAGES, make_clone
from test_execution import drawn, draws, fail, kill_own_worker, meet, nothing, refuse, task
from test_execution import give_back_what_cannot_be_sent as lock

from lottery.errors import LotteryError
from lottery.running import cluster, executors
from lottery.tools.runs import kept

PATIENCE = 120  # seconds, at most, for something that takes a few on an idle machine


def run(tasks, prepare=nothing):
    return executors.compute(tasks, prepare, title="t", threads=1)


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {what()}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes of one CPU each, and a head that only drives."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "include_log_monitor": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: starved by the tests beside it
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # none that nothing is given to
        made = Cluster(initialize_head=True, head_node_args=head)
        made.computing = [made.add_node(num_cpus=1) for _ in range(2)]
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def on_ray(two_nodes, monkeypatch):
    """The cluster computes; its workers find the tasks of these tests."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    monkeypatch.chdir(ROOT)


def test_results_are_those_of_local_tasks_and_computed_elsewhere_on_both_nodes(
    on_ray, tmp_path, capfd
):
    met = [task(me, meet, tmp_path, me, other) for me, other in ("ab", "ba")]  # each fills a node
    a, b, *results = run([*met, *draws(6, rounds=2)])
    assert (a, b) == (True, True)
    assert [values for values, _ in results] == [[drawn(s, r) for r in (0, 1)] for s in range(6)]
    assert os.getpid() not in {process for _, process in results}
    assert capfd.readouterr().out.count(": as it should") == 12


def test_a_task_that_is_too_large_for_any_node_is_said_to_wait(on_ray, monkeypatch):
    monkeypatch.setenv("LOTTERY_CPUS_PER_RUN", "2")  # the two nodes have one each
    with cluster.Ray(nothing, print, 1) as ray:
        assert ray.description.endswith(
            "a run takes 2 CPU, 0 GPU); waiting for a node with that much"
        )


def test_failing_tasks_are_each_named_and_the_others_finish(on_ray, capfd):
    failing = [task("first", fail, LotteryError("data/masks: damaged")), task("second", lock)]
    with pytest.raises(LotteryError) as error:
        run([*failing, *draws(1)])
    lines = str(error.value).splitlines()
    assert "first: data/masks: damaged" in lines
    assert any(line.startswith("second: ") for line in lines)
    assert lines[-1].startswith("1 of 3 runs finished")
    why = r"(?s)seed 0: its worker could not start: .*no such device"
    with pytest.raises(LotteryError, match=why):
        run(draws(1), refuse)
    assert "taken up again" not in capfd.readouterr().out


def test_a_task_that_kills_its_worker_is_taken_up_again_twice(on_ray, tmp_path, capfd):
    some, all_ = (tmp_path / "some", 2, False), (tmp_path / "all", 9, False)
    with pytest.raises(LotteryError) as error:
        run([task("mine", kill_own_worker, *some), task("hers", kill_own_worker, *all_)])
    again = "t: mine: its worker died (WorkerCrashedError); taken up again"
    assert capfd.readouterr().out.splitlines().count(again) == 2
    failed, finished = str(error.value).splitlines()
    assert failed.startswith("hers: its worker died 3 times (WorkerCrashedError)")
    assert finished.startswith("1 of 2 runs finished")


def test_a_folder_that_a_node_does_not_see_fails_the_task_in_one_line(on_ray, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/on/the/head/alone")
    why = r"seed 0: a node .*: No module named 'lottery': all nodes"
    with pytest.raises(LotteryError, match=why):
        run(draws(1))


def workers(two_nodes):
    """The processes that compute tasks on the cluster's nodes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in two_nodes.computing]
    of_nodes = [p for pid in raylets for p in psutil.Process(pid).children(recursive=True)]
    return [p for p in of_nodes if "ray::_compute" in " ".join(p.cmdline())]


@pytest.mark.timeout(1200)
def test_the_bytes_are_those_of_a_local_run_whatever_dies(two_nodes, tmp_path, monkeypatch):
    """A worker in train_dense, both nodes in prune, new ones added, then the driver in retrain."""
    local, ray = make_clone(tmp_path / "local"), make_clone(tmp_path / "ray")
    longer = {"train.iterations": 2000, "train.evaluate_every": 100, "report.iteration_margin": 0.9}
    fewer = {"prune.rounds": 1, "retrain.variants": ["ticket"]}
    for key, value in (longer | fewer).items():
        local.change(key, value)
        ray.change(key, value)
    monkeypatch.setenv("LOTTERY_RUNS", str(ray.path / ".runs"))
    on_ray = {"LOTTERY_EXECUTOR": "ray", "RAY_ADDRESS": two_nodes.address}
    ray.environment = on_ray | {"LOTTERY_CHECKPOINT_SECONDS": "0"}
    env, log = ray.env(), tmp_path / "log"

    def start():
        with open(log, "a") as out:
            command, whole = ["dvc", "repro", "retrain"], {"start_new_session": True}
            return subprocess.Popen(command, cwd=ray.path, env=env, stdout=out, stderr=out, **whole)

    def under_way(what):
        def seen():
            return any(what in k.name and re.match("at [1-9]", k.status) for k in kept())

        wait_for(seen, lambda: f"{what} in {kept()}\n{log.read_text()}")

    process = start()
    try:
        under_way("dense")
        workers(two_nodes)[0].kill()
        under_way("pruning")
        for node in two_nodes.computing:
            two_nodes.remove_node(node, allow_graceful=False)
        two_nodes.computing = [two_nodes.add_node(num_cpus=1) for _ in range(2)]
        under_way("ticket")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = start()
        assert process.wait(3 * PATIENCE) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_text()
    for stage in ("train_dense", "prune"):
        assert re.search(f"{stage}: .*its worker died.*; taken up again", said), said
    assert "resumed at iteration" in said
    assert "Traceback" not in said
    local.stage(*STAGES[:-1])
    assert ray.files("data") == local.files("data")


def test_ctrl_c_cancels_the_tasks_and_leaves_the_cluster_clean(two_nodes, tmp_path):
    code = f"import pathlib, test_execution as t; t.drive(pathlib.Path({str(tmp_path)!r}))"
    env = {**os.environ, "LOTTERY_EXECUTOR": "ray", "RAY_ADDRESS": two_nodes.address}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    with open(tmp_path / "output", "w") as out:
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out)
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2, (tmp_path / "output").read_text)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
    sleeping = [int(path.stem) for path in tmp_path.glob("*.pid")]
    wait_for(lambda: not any(map(psutil.pid_exists, sleeping)), lambda: workers(two_nodes))
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize("value", ["-1", "two", "1.5", "2000"])
def test_a_bad_share_of_a_run_is_an_error_that_names_the_variable(monkeypatch, value):
    monkeypatch.setenv("LOTTERY_GPUS_PER_RUN", value)
    with pytest.raises(LotteryError, match=f"LOTTERY_GPUS_PER_RUN: got {value!r}; accepted: "):
        cluster.resource("LOTTERY_GPUS_PER_RUN", 0)


def test_fractions_of_a_gpu_are_accepted(monkeypatch):
    monkeypatch.setenv("LOTTERY_GPUS_PER_RUN", "0.25")
    assert cluster.resource("LOTTERY_GPUS_PER_RUN", 0) == 0.25
    assert cluster.resource("LOTTERY_CPUS_PER_RUN", 4) == 4


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LotteryError, match="Ray is not installed: pip install"):
        run(draws(1))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS: 127.0.0.1:1: no cluster answers there"),
        ("ray://head:10001", "RAY_ADDRESS: got 'ray://head:10001'; .*from one of its nodes"),
    ],
)
def test_an_address_without_a_cluster_is_said_in_one_line(monkeypatch, address, why):
    monkeypatch.setenv("LOTTERY_EXECUTOR", "ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(LotteryError, match=why) as error:
        run(draws(1))
    assert len(str(error.value).splitlines()) == 1
