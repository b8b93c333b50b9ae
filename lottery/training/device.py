"""What TensorFlow computes on: set up once a process, before anything else."""

from lottery.training import models  # noqa: F401  (sets TF_USE_LEGACY_KERAS)

import tensorflow as tf  # isort: skip


def configure(threads: int, worker: int = 0) -> None:
    """Sets TensorFlow up for this process: deterministic kernels, a fixed number of threads, GPU
    memory as needed.

    On a GPU float32 means float32: TF32, which TensorFlow turns on by itself, keeps 10 bits of a
    product's mantissa. Of several GPUs, workers take turns: each process sees one. To be called
    before anything is computed; TensorFlow refuses a later change with a RuntimeError.
    """
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        mine = gpus[worker % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)


def device_name() -> str:
    """What runs are computed on: ``GPU NVIDIA …`` where TensorFlow sees one, else ``CPU``."""
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "CPU"
    return "GPU " + tf.config.experimental.get_device_details(gpus[0]).get("device_name", "")
