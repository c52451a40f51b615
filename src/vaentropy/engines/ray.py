"""`Ray`: tasks done by a Ray cluster, or by one that is started on this machine."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from typing import IO, Any, cast

from vaentropy.checks import require_count, require_number
from vaentropy.engines.engine import TRIES, Call, Done, Engine, Lost, answer_of, no_progress
from vaentropy.engines.processes import available_cores
from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.progress import Report

__all__ = ["Ray"]

SECONDS_BETWEEN_REPORTS = 0.5
LOCAL = "local"
# A local cluster begins and ends with a call. What else it would do (a web page, statistics sent home) stays out.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Ray(Engine):
    """Tasks of Ray (https://docs.ray.io): on a cluster, whose machines have vaentropy installed, or on this one.

    Paths that tasks read and write have to lead to the same files on all machines. A cluster of this machine is started
    for a call of `run`, unless `ray.init` was called before, and ended with it.

    Args:
        address: of a cluster, as `ray.init` takes it: "auto", "head:6379", "ray://head:10001"; None takes the
            environment's RAY_ADDRESS and, without that, starts a cluster of this machine.
        workers: tasks at a time; None takes one for each core (or so many GPUs as `num_gpus` leaves) of the cluster.
        num_cpus: cores that each task takes, which are its threads.
        num_gpus: GPUs that each task takes; may be a fraction.

    Raises:
        UsageError: a number is out of range.
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        num_cpus: int = 1,
        num_gpus: float | int = 0,
    ):
        self.address = address
        self._workers = None if workers is None else require_count("workers", workers)
        self.num_cpus = require_count("num_cpus", num_cpus)
        self.num_gpus = require_number("num_gpus", num_gpus, positive=False)
        _ray()

    @cached_property
    def workers(self) -> int:  # type: ignore[override]  # known when the cluster is
        """Tasks at a time."""
        if self._workers is not None:
            return self._workers
        with self._cluster():
            there = _ray().cluster_resources()
        limits = [there.get("CPU", 1) // self.num_cpus]
        limits += [there.get("GPU", 0) // self.num_gpus] if self.num_gpus else []
        return max(1, int(min(limits)))

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Connected to it; one that is started here ends with this."""
        ray = _ray()
        if ray.is_initialized():
            yield
            return
        address = self.address or os.environ.get("RAY_ADDRESS") or LOCAL
        own = {"num_cpus": (self._workers or available_cores()) * self.num_cpus} if address == LOCAL else {}
        before = {name: os.environ.get(name) for name in QUIET}
        os.environ.update({name: value for name, value in QUIET.items() if before[name] is None})
        try:
            ray.init(
                address,
                include_dashboard=False if own else None,
                log_to_driver=False,
                logging_level="error",
                configure_logging=False,
                **own,
            )
        except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"no Ray cluster at {address!r} ({reason}); start one with: ray start --head, or leave the address out"
            ) from error
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
        try:
            yield
        finally:
            with redirect_stdout(sys.stderr):  # what it has not said yet
                ray.shutdown()

    def run(self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress) -> Iterator[Done]:
        """Do the tasks, see `Engine.run`."""
        if not tasks:
            return
        ray = _ray()
        with redirect_stdout(cast(IO[str], _OfThisThread(sys.stdout))), self._cluster():
            # A call that is interrupted ends what it has begun, on a cluster that goes on as well.
            running: dict[Any, int] = {}
            news = ray.remote(num_cpus=0)(_News).remote()
            try:
                yield from self._each(call, tasks, running, news, report)
            finally:
                for reference in running:
                    ray.cancel(reference, force=True)
                ray.kill(news)

    def _each(
        self, call: Call, tasks: Sequence[Any], running: dict[Any, int], news: Any, report: Report
    ) -> Iterator[Done]:
        ray = _ray()
        start = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=TRIES - 1)(_answer)
        shared, progress = _put(call), _Progress(report)
        waiting = list(enumerate(tasks))[::-1]
        while waiting or running:
            while waiting and len(running) < self.workers:
                number, task = waiting.pop()
                running[start.remote(shared, number, task, news, self.num_cpus)] = number
            ended, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_REPORTS)
            progress.show(ray.get(news.read.remote()))
            for reference in ended:
                # Not before there is an answer: until then an interruption has to stop it.
                done = _done(reference, running[reference])
                del running[reference]
                if done.failure is not None:
                    progress.take_back(done.number)
                yield done


class _OfThisThread:
    """A stdout of this thread alone: Ray's own would put what it says of lost workers among the results."""

    def __init__(self, stdout: IO[str]):
        self._stdout, self._thread = stdout, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout if threading.get_ident() == self._thread else sys.stderr, name)


class _News:
    """What tasks tell while they are under way, on its way to the process that shows it."""

    def __init__(self) -> None:
        self._told: list[tuple[int, str, str, int]] = []

    def tell(self, number: int, attempt: str, note: str, units: int) -> None:
        self._told.append((number, attempt, note, units))

    def read(self) -> list[tuple[int, str, str, int]]:
        told, self._told = self._told, []
        return told


class _Progress:
    """Units of work done, of attempts that still count."""

    def __init__(self, report: Report):
        self._report = report
        self._units: dict[int, tuple[str, int]] = {}

    def show(self, told: list[tuple[int, str, str, int]]) -> None:
        for number, attempt, note, units in told:
            if number in self._units and self._units[number][0] != attempt:
                self.take_back(number)
            self._units[number] = attempt, self._units.get(number, ("", 0))[1] + units
            self._report(note, units)

    def take_back(self, number: int) -> None:
        _, units = self._units.pop(number, ("", 0))
        if units:
            self._report("", -units)


def _answer(call: Call, number: int, task: Any, news: Any, threads: int) -> Done:
    """What a worker of Ray does."""
    import uuid

    import torch

    torch.set_num_threads(threads)
    attempt, told = uuid.uuid4().hex, []

    def report(note: str = "", /, advance: int = 1) -> None:
        told[:] = [news.tell.remote(number, attempt, note, advance)]

    answer = answer_of(call, number, task, report)
    # The last has arrived before the answer does.
    _ray().get(told)
    return answer


def _put(call: Call) -> Any:
    try:
        return _ray().put(call)
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"what is to be done cannot be sent to another process ({reason}); use one worker") from error


def _done(reference: Any, number: int) -> Done:
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        return Done(number, failure=Lost(f"its worker was lost {TRIES} times ({reason}); was there memory enough?"))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    return ray
