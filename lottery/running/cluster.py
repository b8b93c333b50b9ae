"""Runs as Ray tasks: on the cluster at ``RAY_ADDRESS``, or on one of this machine alone.

Ray schedules and moves data; this module describes tasks and says what became of them. The stage is the driver. Beside it,
on its node, sits one actor, the ``Home``: it holds the run store and counts the iterations that runs report. The code travels in
Ray's runtime environment, the dataset through the object store, once to each node.
"""

import contextlib
import functools
import hashlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lottery.artifacts import files
from lottery.errors import LotteryError
from lottery.running import store
from lottery.running.executors import Event, Job, Task, explain, given_workers

LEFT_BEHIND = (
    "/data",
    "/.runs",
    "/.venv",
    "/venv",
    "/.dvc",
    "/.git",
    "/reports",
    "/docs",
    "/tests",
    "/site",
    "/export",
)
"""No code of a run."""

POLL_SECONDS = 0.5  # between two looks at what runs have reported


def resource(variable: str, default: float) -> float:
    """A number of CPUs or GPUs for one run, from the environment; fractions are allowed."""
    given = os.environ.get(variable) or str(default)
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1024 or (number > 1 and number % 1):
        raise LotteryError(
            f"{variable}: got {given!r}; accepted: a whole number up to 1024, or a fraction of 1"
        )
    return number


def ray_library() -> Any:
    """Ray, imported; LotteryError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", ""
    )  # LEFT_BEHIND says what; else Ray warns
    try:
        import ray
    except ImportError:
        raise LotteryError("LOTTERY_EXECUTOR=ray: Ray is not installed: pip install ray") from None
    return ray


def _check_reachable(address: str) -> None:
    """LotteryError where nothing listens at ``host:port``: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=20).close()
        except (OSError, OverflowError) as error:
            raise LotteryError(
                f"RAY_ADDRESS: {address}: no cluster answers there: {error}"
            ) from None


class Home:
    """The actor beside the driver: what the tasks on the nodes ask and tell it."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self._iterations: dict[int, int] = {}

    def store(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of ``lottery.store`` here, where the store is."""
        return getattr(store, function)(*args, **kwargs)

    def progress(self, number: int, iterations: int) -> None:
        self._iterations[number] = iterations

    def news(self) -> dict[int, int]:
        """The iterations done of the tasks that have reported since the last call, by number."""
        found, self._iterations = self._iterations, {}
        return found


class Ray:
    """Computes tasks on a Ray cluster.

    One run takes ``LOTTERY_CPUS_PER_RUN`` CPUs, by default its threads, and ``LOTTERY_GPUS_PER_RUN`` GPUs, by default one where the cluster
    has any. ``LOTTERY_WORKERS`` bounds the tasks given to Ray at once; by default twice as many as the cluster has room for, which
    also makes an autoscaling cluster grow.

    Args:
        prepare: called in each worker process before its first task; picklable.
        threads: that one run computes with.

    Raises LotteryError where a variable has an impossible value or Ray is not installed.
    """

    def __init__(self, prepare: Callable[[int], None], threads: int) -> None:
        self._ray = ray_library()
        self._prepare = prepare
        self._cpus = resource("LOTTERY_CPUS_PER_RUN", threads)
        self._gpus = (
            resource("LOTTERY_GPUS_PER_RUN", 0) if os.environ.get("LOTTERY_GPUS_PER_RUN") else None
        )
        self._most = given_workers()
        self._jobs: dict[Any, tuple[int, Job]] = {}
        self._number = 0
        self._home: Any = None
        self._room: tuple[float, int] = (0.0, 0)
        self._polled = 0.0

    def open(self, chains: int) -> str:
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        address = os.environ.get("RAY_ADDRESS") or "local"
        if address.startswith("ray://"):
            raise LotteryError(
                f"RAY_ADDRESS: got {address!r}; accepted: host:port of the cluster's head, from one of its nodes: "
                "run the stage there, for instance with `ray exec` or `ray job submit`"
            )
        _check_reachable(address)
        environment = {
            name: value for name, value in os.environ.items() if name.startswith("LOTTERY_")
        }
        environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # a run that takes no GPU sees none
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=address,
                runtime_env={
                    "working_dir": ".",
                    "excludes": list(LEFT_BEHIND),
                    "env_vars": environment,
                },
                logging_level="error",
                log_to_driver=False,  # pages of state for a node that is lost; what matters comes back with the task
                **({"include_dashboard": False} if address == "local" else {}),
            )
        except (
            ConnectionError,
            ValueError,
            RuntimeError,
            TimeoutError,
            ray.exceptions.RayError,
        ) as error:
            raise LotteryError(
                f"RAY_ADDRESS: {address}: no connection: {_first_line(error)}"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, terminate)  # Ray puts its own in place
        offered = ray.cluster_resources()
        if self._gpus is None:
            self._gpus = 1.0 if offered.get("GPU") else 0.0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        home = ray.remote(Home).options(num_cpus=0, scheduling_strategy=here, max_concurrency=4)
        self._home = home.remote(os.getcwd())
        dataset = {
            path.name: ray.put(np.fromfile(path, np.uint8))
            for path in sorted(files.DATASET.glob("*"))
        }
        compute = ray.remote(_compute).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0
        )
        self._compute = functools.partial(compute.remote, self._prepare, self._home, dataset)
        nodes = sum(node["Alive"] for node in ray.nodes())
        has = f"{offered.get('CPU', 0):g} CPU, {offered.get('GPU', 0):g} GPU"
        where = f"on Ray ({nodes} node{'s' * (nodes != 1)}: {has}; a run takes {self._cpus:g} CPU, {self._gpus:g} GPU)"
        if not self._slots():
            where += "; waiting for a node with that much"
        return where

    def _slots(self) -> int:
        """Runs for which the cluster has room; asked again every two seconds, since nodes come and go."""
        asked, slots = self._room
        if time.monotonic() - asked > 2:
            takes = {
                name: each for name, each in (("CPU", self._cpus), ("GPU", self._gpus)) if each
            }
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            slots = sum(
                int(min((node.get(n, 0) / each for n, each in takes.items()), default=1))
                for node in nodes
            )
            self._room = (time.monotonic(), slots)
        return slots

    def has_room(self) -> bool:
        return len(self._jobs) < (self._most or max(4, 2 * self._slots()))

    def start(self, job: Job) -> None:
        self._number += 1
        self._jobs[self._compute(self._number, job.task)] = (self._number, job)

    def events(self) -> Iterator[Event]:
        ray, errors = self._ray, self._ray.exceptions
        ended, _ = ray.wait(list(self._jobs), timeout=POLL_SECONDS)
        if ended:
            ended, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
        if time.monotonic() - self._polled >= POLL_SECONDS:
            self._polled = time.monotonic()
            news = ray.get(self._home.news.remote())
            for number, job in list(self._jobs.values()):
                if number in news:
                    yield job, "progress", news[number]
        for reference in ended:
            _, job = self._jobs.pop(reference)
            try:
                kind, value = ray.get(reference)
            except errors.RayTaskError as error:  # its result cannot be sent
                kind, value = "failed", str(error)
            except (
                errors.RayError
            ) as error:  # the worker, its node, or the node that kept the result is gone
                kind, value = "died", type(error).__name__
                if isinstance(error, (errors.RuntimeEnvSetupError, errors.OutOfMemoryError)):
                    value += f": {_first_line(error)}"
            yield job, kind, value

    def close(self) -> None:
        if self._ray.is_initialized():
            for reference in self._jobs:
                with contextlib.suppress(Exception):
                    self._ray.cancel(reference, force=True)
            self._ray.shutdown()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_ready: str | None = (
    None  # what is wrong with this process, "" where nothing is; None: not looked at yet
)


def _compute(
    prepare: Callable[[int], None], home: Any, dataset: dict[str, Any], number: int, task: Task
) -> tuple[str, Any]:
    """On a node: a task's result, or why there is none."""
    global _ready
    ray = ray_library()
    if _ready is None:
        try:
            _settle(dataset)
            store.elsewhere = lambda *args, **kwargs: ray.get(home.store.remote(*args, **kwargs))
            prepare(0)
            _ready = ""
        except Exception as error:
            _ready = f"its worker could not start: {explain(error)}"
    if _ready:
        return "failed", _ready
    try:
        return "done", task(lambda iterations: home.progress.remote(number, iterations))
    except ray.exceptions.RayTaskError as error:  # of the run store
        return "failed", explain(error.cause)
    except Exception as error:
        return "failed", explain(error)


def _settle(dataset: dict[str, Any]) -> None:
    """Makes a folder of the node that holds the dataset the one that this process works in.

    The folder is the user's, named after the sha256 of ``dataset.json``, which holds those of the other files; they are checked whenever
    the dataset is opened. The first process of a node writes it, the others wait.
    """
    ray = ray_library()
    facts = ray.get(dataset["dataset.json"]).tobytes() if dataset else b""
    place = (
        Path(tempfile.gettempdir())
        / f"lottery-{os.getuid()}-{hashlib.sha256(facts).hexdigest()[:16]}"
    )
    place.mkdir(exist_ok=True)
    with FileLock(place / "lock"):
        if not all((place / files.DATASET / name).exists() for name in dataset):
            (place / files.DATASET).parent.mkdir(exist_ok=True)
            with files.folder_written_whole(place / files.DATASET) as folder:
                for name, content in dataset.items():
                    files.write(folder / name, ray.get(content).data)
    os.chdir(place)
