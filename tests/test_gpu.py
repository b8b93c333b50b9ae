"""Which GPU a worker gets: as far as that can be tested without one."""

import pytest
import tensorflow as tf
from networks import device


@pytest.mark.parametrize(
    ("gpus", "worker", "expected"),
    [
        (0, 0, []),
        (1, 3, [("visible", "GPU:0", "GPU"), ("growth", "GPU:0", True)]),
        (4, 6, [("visible", "GPU:2", "GPU"), ("growth", "GPU:2", True)]),
    ],
)
def test_workers_take_turns_at_the_gpus_with_memory_growth_on(gpus, worker, expected, monkeypatch):
    there, told = [tf.config.PhysicalDevice(f"GPU:{i}", "GPU") for i in range(gpus)], []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: there)
    for owner, function, what in (
        (tf.config, "set_visible_devices", "visible"),
        (tf.config.experimental, "set_memory_growth", "growth"),
    ):
        tell = lambda one, value, what=what: told.append((what, one.name, value))  # noqa: E731
        monkeypatch.setattr(owner, function, tell)
    device.configure(1, worker=worker)
    assert told == expected
