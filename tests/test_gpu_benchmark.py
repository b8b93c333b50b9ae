"""The GPU benchmark, reduced and on the CPU: it runs on a bare machine, its checks pass, it keeps to its time."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import CPU, NOT_MEASURED, Failure, Mode, Speed, order_of_cells, side_by_side
from benchmarks.training import flops_per_sample

ROOT = Path(__file__).parent.parent
NOT_THERE = "sklearn scipy mlxtend pandas filelock dvc matplotlib tensorflow_model_optimization PIL"


def benchmark(folder, *arguments):
    paths = {"PYTHONPATH": os.pathsep.join(map(str, [folder / "bare", ROOT]))}
    env = os.environ | paths | {"CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--quick", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=280)


def tables(text):
    """Each table as a list of its lines, the head first."""
    found = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = [[line.strip("| ").split(" | ") for line in one.splitlines()] for one in found]
    return [[one[0], *one[2:]] for one in lines]


def test_on_the_cpu_of_a_bare_machine_it_measures_and_says_that_there_is_no_gpu(tmp_path):
    count = min(2, gpu.cores())
    (tmp_path / "bare").mkdir()
    for name in NOT_THERE.split():
        (tmp_path / f"bare/{name}.py").write_text("raise ImportError('not on this machine')\n")
    done = benchmark(tmp_path, "--out", "table.md", "--replicates", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "TensorFlow sees no GPU here" in done.stdout
    assert str(ROOT) not in done.stdout
    differences, repeats, rates, speeds = tables(done.stdout)
    assert differences[0] == ["model", "float32", "bfloat16"]
    for _, float32, bfloat16 in differences[1:]:
        assert float(float32) < 1e-4 < float(bfloat16) < 1
    head, *same = repeats
    assert head == ["model", "float32", "float32, XLA"]
    assert same == [["lenet_300_100", "yes", "yes"]]
    rate = float(rates[1][0].removesuffix(" FLOP/s"))
    assert rate > 1e8
    [[*cell, samples, epoch, share, device_memory, host_memory]] = speeds[1:]
    assert cell == ["lenet_300_100", "float32", str(count)]
    per_second = float(samples.replace(",", ""))
    assert float(epoch.replace(",", "")) == pytest.approx(55_000 * count / per_second, rel=0.05)
    expected = 100 * per_second * flops_per_sample("lenet_300_100") / (rate * count)
    assert float(share.rstrip("%")) == pytest.approx(expected, rel=0.05, abs=0.1)
    assert device_memory == "–"
    assert host_memory == "–" or 50 < float(host_memory.replace(",", "")) < 10_000


def test_it_ends_in_its_time_and_says_what_it_did_not_start_with(tmp_path):
    done = benchmark(tmp_path, "--minutes", "0.05")
    assert done.returncode == 1
    assert "TensorFlow did not start: not measured" in done.stderr
    assert done.stdout == ""


class OnCard:
    """Stands for a worker on a card that has room for the memory of two processes, idle ones included."""

    def __init__(self, card):
        self.card = card

    def send(self, task, *arguments):
        self.task = task
        if task == "prepare" and len(self.card) < 2:
            self.card.add(self)

    def receive(self, deadline):
        if self not in self.card:
            return gpu.OUT_OF_MEMORY
        return None if self.task == "prepare" else Speed(100.0, 2**30, 2**31)

    def stop(self):
        self.card.discard(self)


def test_replicates_without_memory_are_tried_again_without_idle_processes_and_then_named_so():
    card = set()
    workers = [OnCard(card) for _ in range(4)]
    card.update(workers[2:])
    later = time.monotonic() + 60
    assert side_by_side(workers, later, ("conv4", Mode()), 2, CPU) == Speed(200.0, 2**30, 2**31)
    assert side_by_side(workers, later, ("conv4", Mode()), 4, CPU) == "out of memory"
    assert side_by_side(workers, time.monotonic(), ("conv4", Mode()), 1, CPU) is NOT_MEASURED


def test_a_process_that_ends_or_takes_too_long_is_a_failure_and_is_started_afresh():
    worker = gpu.Worker()
    try:
        worker.process.kill()
        worker.process.join()
        killed = "failed: the process ended with exit code -9"
        assert worker.receive(time.monotonic() + 60) == killed
        first = worker.process.pid
        worker.send("no such task")
        assert worker.process.pid != first
        assert worker.receive(time.monotonic() + 60) == "failed: KeyError: 'no such task'"
        os.kill(worker.process.pid, signal.SIGSTOP)  # so that it cannot answer in time
        worker.send("no such task")
        assert worker.receive(time.monotonic() - 1) == "no result in 60 s"
        assert not worker.process.is_alive()
    finally:
        worker.stop()


def test_one_and_eight_replicates_of_everything_come_first():
    kinds = [("conv4", Mode()), ("lenet_300_100", Mode())]
    cells = order_of_cells(kinds, [1, 2, 4, 8, 16])
    assert cells[:4] == [(kinds[0], 1), (kinds[0], 8), (kinds[1], 1), (kinds[1], 8)]
    assert [n for _, n in cells[4:]] == [16, 4, 2, 16, 4, 2]
    assert [n for _, n in order_of_cells(kinds, [1, 2])] == [1, 2, 1, 2]


def test_a_failure_stays_within_its_cell():
    row = gpu.speed_row(("conv4", Mode(tf32=True, jit=True)), 8, Failure("failed: a | b\nc"), 1e12)
    assert row == ["conv4", "TF32, XLA", "8", "failed: a / b c", "", "", "", ""]
    row = gpu.speed_row(("conv4", Mode()), 2, Speed(90_000.0, 2**30, 0), NOT_MEASURED)
    assert row[3:] == ["90,000", "1.0", "not measured", "1,024", "–"]
