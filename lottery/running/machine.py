"""What results are computed on, and a worker process made ready to compute them."""

import contextlib
import functools
import gc
import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lottery.code import Code, installed
from lottery.errors import LotteryError

LIBRARIES = ("tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
ARITHMETIC = ("TF_", "XLA_", "ONEDNN_", "DNNL_", "OMP_", "KMP_", "MKL_", "CUBLAS_", "CUDNN_")
"""Environment variables on which TensorFlow's arithmetic may depend begin so."""
NO_ARITHMETIC = (
    *("TF_CPP_", "TF_CLI_", "TF_USE_LEGACY_KERAS", "TF_FORCE_GPU_ALLOW_GROWTH"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"),  # scikit-learn sets them where it is imported
    "OMP_NUM_THREADS",  # Ray sets it in its workers; TensorFlow's threads are its own
)


def environment(device: str, threads: int) -> dict[str, Any]:
    """What a result says it was computed on: no host name, no date, no CPU model."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"device": device, "threads": threads, "versions": versions}


def variables() -> dict[str, str]:
    """The environment variables that are set here and may change a result's last bits."""
    names = sorted(n for n in os.environ if n.startswith(ARITHMETIC))
    return {name: os.environ[name] for name in names if not name.startswith(NO_ARITHMETIC)}


@functools.cache
def cpu_model() -> str:
    """The CPU's name, family and model, and the instructions by which TensorFlow chooses its
    kernels.

    The name alone is not enough: virtual machines call several generations the same.
    """
    known = Path("/proc/cpuinfo")
    first = known.read_text(encoding="utf-8").split("\n\n")[0] if known.exists() else ""
    parted = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in parted}
    if "model name" not in facts:
        arm = [facts[key] for key in ("CPU implementer", "CPU part", "Features") if key in facts]
        return (platform.processor() or platform.machine()) + f" ({' '.join(arm)})" * bool(arm)
    has = " ".join(name for name in INSTRUCTIONS if name in facts.get("flags", "").split())
    family = f"family {facts.get('cpu family')}, model {facts.get('model')}"
    return f"{facts['model name']} ({family}; {has or 'no AVX2'})"


def prepare(threads: int, code: Code, worker: int) -> None:
    """Makes this process ready for runs of so many threads, with the stage's code imported.

    Args:
        code: that the stage began with.
        worker: the process's number among those of this machine; GPUs are taken in turns.

    Raises LotteryError, each time, where this process has other code.
    """
    if why := _other_code(threads, code, worker):
        raise LotteryError(why)


@functools.lru_cache(maxsize=1)
def _other_code(threads: int, code: Code, worker: int) -> str:
    """Why this process, once ready, has other code; looked at when it is imported, once."""
    with quick_and_quiet_start():
        from lottery.training import device

        before, known = {*sys.modules}, dict(code.modules)
        for name in known:  # now: what is imported later might have changed
            importlib.import_module(name)
        unseen = hidden({*sys.modules} - before - known.keys())
        device.configure(threads, worker)
        device.device_name()
    changed = ", ".join(code.changed())
    return unseen or (f"{changed}: changed since the stage began; start it again" * bool(changed))


def hidden(imported: Iterable[str]) -> str:
    """Why none of these modules should have been imported as it was; empty where all are seen."""
    names = sorted(name for name in imported if not name.startswith("__autograph_"))  # TensorFlow's
    for file in (getattr(sys.modules[name], "__file__", None) for name in names):
        if file and file.endswith(".py") and not installed(Path(file)):
            return (
                f"{file}: imported in a way that hides its changes: by its full name, with "
                "`import` or `from`, they are seen"
            )
    return ""


@contextlib.contextmanager
def quick_and_quiet_start() -> Iterator[None]:
    """For the import of TensorFlow: garbage is not collected, nor looked for among it afterwards,
    which would take a third of a worker's start and end.

    What its C++ prints as it looks for GPUs is dropped; everything else goes through.
    """
    noise = (
        "absl::InitializeLog",
        "cudart_stub.cc",
        "failed call to cuInit",
        "cpu_feature_guard.cc",
        "To enable the following",
        "oneDNN custom operations are on",
    )
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if not any(words in line for words in noise):
                    print(line, file=sys.stderr)
