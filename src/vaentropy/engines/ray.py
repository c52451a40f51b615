"""`Ray`: tasks done by a Ray cluster, or by one that is started on this machine."""

import os
import signal
import socket
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from vaentropy.checks import require_count, require_number
from vaentropy.engines.engine import (
    TRIES,
    UNSENDABLE,
    Call,
    Done,
    Engine,
    GpuFailed,
    Lost,
    answer_of,
    cannot_be_sent,
)
from vaentropy.engines.processes import SECONDS_TO_STOP, available_cores
from vaentropy.errors import MissingExtraError, UsageError, shown
from vaentropy.progress import Report, no_progress

__all__ = ["Ray"]

SECONDS_BETWEEN_REPORTS = 0.5
SECONDS_TO_ANSWER = 5.0
LOCAL, CLIENT = "local", "ray://"
RAY_THREADS = "ray_"  # how their names begin
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

    other_machines = True

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        num_cpus: int = 1,
        num_gpus: float | int = 0,
    ):
        self.address = address
        self.workers = None if workers is None else require_count("workers", workers)
        self.num_cpus = require_count("num_cpus", num_cpus)
        self.num_gpus = require_number("num_gpus", num_gpus, positive=False)
        _ray()

    def _at_a_time(self) -> int:
        """Tasks that the cluster to which we are connected does at a time."""
        if self.workers is not None:
            return self.workers
        there = _ray().cluster_resources()
        limits = [there.get("CPU", 1) // self.num_cpus]
        limits += [there.get("GPU", 0) // self.num_gpus] if self.num_gpus else []
        return max(1, int(min(limits)))

    @property
    def _where(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS") or LOCAL

    def require_there(self) -> None:
        """Refuse an address at which nobody answers: Ray itself would try for minutes.

        Raises:
            UsageError: there is nobody.
        """
        host, colon, port = self._where.removeprefix(CLIENT).rpartition(":")
        if not colon:  # a word
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _nobody(self._where, getattr(error, "strerror", None) or str(error)) from error

    @contextmanager
    def _cluster(self) -> Iterator[None]:
        """Connected to it; one that is started here ends with this."""
        ray = _ray()
        if ray.is_initialized():
            yield
            return
        self.require_there()
        with _own_signals() as put_back:
            self._start()
            try:
                put_back()
                yield
            finally:
                with _not_among_results():  # what it has not said yet
                    ray.shutdown()

    def _start(self) -> None:
        ray, address = _ray(), self._where
        # As many cores as there are, unless more tasks are asked for.
        cores = self.workers * self.num_cpus if self.workers else max(available_cores(), self.num_cpus)
        own = {"num_cpus": cores} if address == LOCAL else {}
        before = {name: os.environ.get(name) for name in QUIET}
        os.environ.update({name: value for name, value in QUIET.items() if before[name] is None})
        try:
            with _not_among_results():
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
            raise _nobody(address, reason) from error
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]

    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Generator[Done, None, None]:
        """Do the tasks, see `Engine.run`."""
        if not tasks:
            return
        ray = _ray()
        with _threads_aside(), self._cluster():
            # A call that is interrupted ends what it has begun, on a cluster that goes on as well.
            running: dict[Any, int] = {}
            news = ray.remote(num_cpus=0, max_restarts=-1)(_News).remote()
            try:
                workers = self._at_a_time()
                bound = len(tasks) if ahead is None else ahead * workers
                yield from self._each(call, tasks, running, news, report, workers, bound)
            finally:
                _stop(list(running), news)

    def _each(
        self,
        call: Call,
        tasks: Sequence[Any],
        running: dict[Any, int],
        news: Any,
        report: Report,
        workers: int,
        ahead: int,
    ) -> Generator[Done, None, None]:
        ray = _ray()
        start = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=TRIES - 1)(_answer)
        # In a list, so that it is taken out once in each worker and not for each task.
        with _sending("what is to be done"):
            shared = [ray.put(call)]
        progress = _Progress(report)
        waiting = list(enumerate(tasks))[::-1]
        while waiting or running:
            while waiting and len(running) < workers and _near(waiting[-1][0], running, ahead):
                number, task = waiting.pop()
                with _sending("a task"):
                    running[start.remote(shared, number, task, news, self.num_cpus)] = number
            ended, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_REPORTS)
            progress.show(_told(news))
            for reference in ended:
                # Not before there is an answer: until then an interruption has to stop it.
                done = _done(reference, running[reference])
                del running[reference]
                if isinstance(done.failure, Lost):
                    progress.take_back(done.number)
                yield done


def _near(number: int, running: dict[Any, int], ahead: int) -> bool:
    """Whether a task is near enough to the first that has not ended: one that is running, since they begin in order."""
    return number < min([number, *running.values()]) + ahead


def _not_among_results() -> redirect_stdout[Any]:
    """While Ray begins or ends: what it says then goes to stderr."""
    return redirect_stdout(sys.stderr)


class _Aside:
    """A stdout on which Ray's own threads, which tell of lost workers, say nothing; that goes to stderr."""

    def __init__(self, stdout: Any):
        self._stdout = stdout

    def __getattr__(self, name: str) -> Any:
        own = threading.current_thread().name.startswith(RAY_THREADS)
        return getattr(sys.stderr if own else self._stdout, name)


@contextmanager
def _threads_aside() -> Iterator[None]:
    before = sys.stdout
    sys.stdout = aside = _Aside(before)  # type: ignore[assignment]
    try:
        yield
    finally:
        if sys.stdout is aside:  # and not what somebody else has put there since
            sys.stdout = before


@contextmanager
def _sending(what: str) -> Iterator[None]:
    try:
        yield
    except UNSENDABLE as error:
        raise cannot_be_sent(what, error) from error


def _told(news: Any) -> list[tuple[int, str, str, int]]:
    """What tasks have told; nothing while the actor is being replaced."""
    ray = _ray()
    try:
        return ray.get(news.read.remote())
    except ray.exceptions.RayError:
        return []


class _News:
    """What tasks tell while they are under way, on its way to the process that shows it."""

    def __init__(self) -> None:
        self._told: list[tuple[int, str, str, int]] = []
        self._wanted = True

    def tell(self, number: int, attempt: str, note: str, units: int) -> bool:
        """Whether the task is to go on."""
        self._told.append((number, attempt, note, units))
        return self._wanted

    def stop(self) -> None:
        self._wanted = False

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


# The call that a worker of Ray has done last, by its reference.
_calls: dict[str, Call] = {}


def _answer(shared: list[Any], number: int, task: Any, news: Any, threads: int) -> Done:
    """What a worker of Ray does."""
    import torch

    torch.set_num_threads(threads)
    name = shared[0].hex()
    if name not in _calls:
        _calls.clear()
        _calls[name] = _ray().get(shared[0])
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _Telling(news, number) as report:
            return answer_of(_calls[name], number, task, report)
    except GpuFailed as failed:
        traceback.print_exception(failed)
        sys.stderr.flush()
        os._exit(1)  # Ray would give the process to others; for one that is lost it tries again
    except KeyboardInterrupt:  # nobody waits for the answer any more
        return Done(number)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Telling:
    """The report of a task: what has come of it is told now and then; where it is not wanted any more it is stopped."""

    def __init__(self, news: Any, number: int):
        self._news, self._number, self._attempt = news, number, uuid.uuid4().hex
        self._note, self._units = "", 0
        self._changing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __call__(self, note: str = "", /, advance: int = 1) -> None:
        with self._changing:
            self._note, self._units = note, self._units + advance

    def __enter__(self) -> Report:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        # The last has arrived before the answer does.
        self._tell()

    def _repeat(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_REPORTS):
            if not self._tell():
                # As Ctrl-C is taken here: there may be a checkpoint to write.
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _tell(self) -> bool:
        """Whether the task is to go on."""
        with self._changing:
            told, self._units = (self._note, self._units), 0
        ray = _ray()
        try:
            return ray.get(self._news.tell.remote(self._number, self._attempt, *told))
        except ray.exceptions.RayError:  # whoever asked for it is gone, or the actor is being replaced
            return True


def _stop(running: list[Any], news: Any) -> None:
    """End tasks that are under way."""
    ray = _ray()
    if running:
        # By word first: Ray aborts this process where a task that it has cancelled ends by itself.
        with suppress(ray.exceptions.RayError):
            ray.get(news.stop.remote())
        _, running = ray.wait(running, num_returns=len(running), timeout=SECONDS_TO_STOP)
    for reference in running:
        ray.cancel(reference, force=True)
    ray.kill(news)


@contextmanager
def _own_signals() -> Iterator[Callable[[], None]]:
    """SIGTERM as it was, again at the end; before, what is yielded puts a handler back that Ray has replaced.

    Without one, Ray's is better than none: it ends the processes of a cluster that was started here.
    """
    before = signal.getsignal(signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread() and before is not None

    def put_back() -> None:
        if here and before is not signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)

    try:
        yield put_back
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _nobody(address: str, reason: str) -> UsageError:
    how = "start one with: ray start --head, or leave the address out"
    return UsageError(f"no Ray cluster at {shown(address)} ({reason}); {how}")


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
