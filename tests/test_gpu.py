"""Which GPU a worker gets: as far as that can be tested without one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPT = """
import sys
from lottery.training import device as training_device
import tensorflow as tf
gpus = [tf.config.PhysicalDevice(f"GPU:{i}", "GPU") for i in range(int(sys.argv[1]))]
said = []
tf.config.list_physical_devices = lambda kind: gpus
tf.config.set_visible_devices = lambda device, kind: said.append(("visible", device.name, kind))
tf.config.experimental.set_memory_growth = lambda device, on: said.append(("growth", device.name, on))
training_device.configure(1, worker=int(sys.argv[2]))
print(said)
"""


@pytest.mark.parametrize(
    ("gpus", "worker", "expected"),
    [
        (0, 0, []),
        (1, 3, [("visible", "GPU:0", "GPU"), ("growth", "GPU:0", True)]),
        (4, 6, [("visible", "GPU:2", "GPU"), ("growth", "GPU:2", True)]),
    ],
)
def test_workers_take_turns_at_the_gpus_with_memory_growth_on(gpus, worker, expected):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(gpus), str(worker)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(expected)
