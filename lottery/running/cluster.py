"""Tasks on a Ray cluster: the one at ``RAY_ADDRESS``, or one of this machine alone.

The stage drives, on a node of the cluster. All nodes see its folder, and the run store, under the
same path.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import Any

from lottery.errors import LotteryError
from lottery.running.workers import P, Prepare, T, Tell, Workers, become_worker, given_workers


def resource(variable: str, default: float) -> float:
    """A number of CPUs or GPUs for one run, from the environment; fractions are allowed."""
    given = os.environ.get(variable) or str(default)
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1024 or (number > 1 and number % 1):
        accepted = "a whole number up to 1024, or a fraction of 1"
        raise LotteryError(f"{variable}: got {given!r}; accepted: {accepted}")
    return number


class Ray(Workers):
    """Computes tasks on a Ray cluster.

    One run takes ``LOTTERY_CPUS_PER_RUN`` CPUs, by default its threads, and
    ``LOTTERY_GPUS_PER_RUN`` GPUs, by default one where the cluster has any. ``LOTTERY_WORKERS``
    bounds the tasks given to Ray at a time; by default twice as many as the cluster has room for,
    which also makes an autoscaling cluster grow.

    Raises LotteryError where a variable has an impossible value, Ray is not installed or no cluster
    answers.
    """

    def __init__(self, prepare: Prepare, tell: Tell, threads: int) -> None:
        cpus = resource("LOTTERY_CPUS_PER_RUN", threads)
        gpus = resource("LOTTERY_GPUS_PER_RUN", 0)
        self._most = given_workers()
        self._ray = ray = _connected(os.environ.get("RAY_ADDRESS") or "local")
        offered = ray.cluster_resources()
        if not os.environ.get("LOTTERY_GPUS_PER_RUN") and offered.get("GPU"):
            gpus = 1.0
        self._takes = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
        self._references: dict[Future[Any], Any] = {}
        self._queue = _queue_here(ray)
        remote = ray.remote(_compute).options(num_cpus=cpus, num_gpus=gpus, max_retries=0).remote
        self._compute = partial(remote, os.getcwd(), prepare, self._queue)
        self._closing = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(tell,), daemon=True)
        self._listener.start()
        nodes = sum(node["Alive"] for node in ray.nodes())
        has = f"{offered.get('CPU', 0):g} CPU, {offered.get('GPU', 0):g} GPU"
        takes = f"a run takes {cpus:g} CPU, {gpus:g} GPU"
        self.description = f"on Ray ({nodes} node{'s' * (nodes != 1)}: {has}; {takes})"
        if not self._slots():
            self.description += "; waiting for a node with that much"

    def _slots(self) -> int:
        """Runs for which the cluster has room at present."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fit = (
            min((node.get(name, 0) / each for name, each in self._takes.items()), default=1)
            for node in nodes
        )
        return sum(map(int, fit))

    @property
    def room(self) -> int:  # type: ignore[override]
        """Asked each time: nodes come and go."""
        return self._most or max(4, 2 * self._slots())

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Gives a task to Ray."""
        reference, future = self._compute(partial(function, *args, **kwargs)), Future[T]()
        self._references[future] = reference
        future.add_done_callback(self._references.pop)
        reference.future().add_done_callback(partial(self._settle, future))
        return future

    def _settle(self, future: Future[Any], of_ray: Future[Any]) -> None:
        errors = self._ray.exceptions
        error = of_ray.exception()
        if error is None:
            future.set_result(of_ray.result())
        elif isinstance(error, errors.RayTaskError):
            told = error.cause if isinstance(error.cause, LotteryError) else error
            if missing := re.search(r"No module named '[\w.]+'|No such file.*: '.+'", str(error)):
                told = LotteryError(
                    f"a node of the cluster: {missing[0]}: all nodes need the packages, the "
                    "project's folder and LOTTERY_RUNS under the same path"
                )
            future.set_exception(told)
        else:  # the worker, its node, or the node that kept the result is gone
            why = type(error).__name__
            if isinstance(error, errors.RuntimeEnvSetupError | errors.OutOfMemoryError):
                why += f": {_first_line(error)}"
            future.set_exception(BrokenExecutor(why))

    def _listen(self, tell: Tell) -> None:
        """Hands on what tasks report, until everything is said."""
        closing = False
        with contextlib.suppress(Exception):  # Ray's, once it shuts down
            while not closing:
                closing = self._closing.wait(0.5)
                for message in self._queue.get_nowait_batch(self._queue.size()):
                    with contextlib.suppress(OSError):  # of the standard output
                        tell(*message)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancels what still runs, and leaves the cluster as it was."""
        for reference in list(self._references.values()):
            with contextlib.suppress(Exception):
                self._ray.cancel(reference, force=True)
        self._closing.set()
        self._listener.join(10)
        self._ray.shutdown()


def _compute(folder: str, prepare: Prepare, queue: Any, function: Callable[[], T]) -> T:
    """On a node: the result of a task."""
    os.chdir(folder)
    become_worker(prepare, 0, lambda *message: queue.put_nowait(message))
    return function()


def _queue_here(ray: Any) -> Any:
    """A queue on the driver's node: other nodes may be lost."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def _connected(address: str) -> Any:
    """Ray, with this process the driver of a cluster; LotteryError where that cannot be."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise LotteryError("LOTTERY_EXECUTOR=ray: Ray is not installed: pip install ray") from None
    if address.startswith("ray://"):
        raise LotteryError(
            f"RAY_ADDRESS: got {address!r}; accepted: host:port of the cluster's head, from one "
            "of its nodes: run the stage there, for instance with `ray exec` or `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=20).close()
        except (OSError, OverflowError) as error:
            why = f"no cluster answers there: {error}"
            raise LotteryError(f"RAY_ADDRESS: {address}: {why}") from None
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    given = {name: value for name, value in os.environ.items() if name.startswith("LOTTERY_")}
    # a run that takes no GPU sees none
    environment = {**given, "PYTHONPATH": path, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": environment},
            logging_level=logging.ERROR,
            log_to_driver=False,  # pages of state for a lost node; what matters comes with the task
            include_dashboard=False if address == "local" else None,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise LotteryError(f"RAY_ADDRESS: {address}: no connection: {_first_line(error)}") from None
    finally:
        signal.signal(signal.SIGTERM, terminate)  # Ray puts its own in place
    return ray


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
