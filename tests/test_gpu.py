"""Which GPU a worker gets, and what runs on it: as far as that can be tested without one."""

import pytest
import tensorflow as tf
from networks import device, random_data, same
from tensorflow.python.framework import kernels

from lottery.masks import Mask
from lottery.params import Model, Network, Train
from lottery.training import models
from lottery.training.schedule import Order
from lottery.training.trainer import Trainer


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


def trained(model, train, monkeypatch, *, gpu):
    """A trainer that takes this machine to have a GPU or not, and the state of a short run."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"] * gpu)
    dataset, split = random_data((16, 16, 3), 10)
    trainer = Trainer(model, train, dataset)
    weights, kinds = models.initialise(Network(model, (16, 16, 3), 10), "initialisation", 0)
    mask = Mask({name: weights[name] > 0 for name in kinds})
    run = mask.apply(weights), mask, Order("test", 0), split
    return trainer, trainer.run(*run, iterations=4)


def kernels_on_a_gpu(node):
    """Whether TensorFlow has one for this operation of these types."""
    registered = kernels.get_registered_kernels_for_op(node.op).kernel
    return any(
        all(node.attr[c.name].type in c.allowed_values.list.type for c in kernel.constraint)
        for kernel in registered
        if kernel.device_type in ("GPU", "DEFAULT")
    )


GPU_BUILD = any(
    k.device_type == "GPU" for k in kernels.get_registered_kernels_for_op("Conv2D").kernel
)


@pytest.mark.skipif(not GPU_BUILD, reason="this TensorFlow has no kernels for GPUs")
@pytest.mark.parametrize(
    ("name", "precision"),
    [("conv2", "float32"), ("conv2", "bfloat16"), ("networks:residual", "bfloat16")],
)
def test_images_lie_on_a_gpu_as_what_it_can_gather_and_results_stay_the_same(
    name, precision, monkeypatch
):
    recipe = Train(
        optimizer="adam" if name == "conv2" else "sgd",
        learning_rate=0.01,
        batch_size=10,
        iterations=4,
        evaluate_every=2,
        precision=precision,
        augmentation={"flip": True, "crop": 2},
    )
    more = {"width": 0.2, "dropout": 0.5} if name == "conv2" else {}
    model = Model(name=name, initializer="he_normal", **more)
    trainer, state = trained(model, recipe, monkeypatch, gpu=True)
    if name == "conv2":
        _, expected = trained(model, recipe, monkeypatch, gpu=False)
        assert same(state.weights, expected.weights)
        assert str(state.history) == str(expected.history)
    missing = set()
    for function in (trainer._interval, trainer._evaluate):
        definition = function.get_concrete_function().graph.as_graph_def()
        bodies = [f.node_def for f in definition.library.function]
        for node in [*definition.node, *(node for body in bodies for node in body)]:
            if not kernels_on_a_gpu(node):
                missing.add(node.op)
    assert not missing
