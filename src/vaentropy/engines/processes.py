"""`Processes`: tasks done by processes of this machine."""

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

from vaentropy.checks import require_count
from vaentropy.engines.engine import (
    DEFINE,
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
from vaentropy.errors import UsageError
from vaentropy.progress import Report, no_progress

__all__ = ["Processes", "available_cores"]

# A worker that is asked to stop may have a checkpoint to write.
SECONDS_TO_STOP = 20.0
# One whose line has ended is about to end.
SECONDS_TO_END = 5.0
READY = None  # what a worker says first


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class Processes(Engine):
    """Processes of this machine, started for a call of `run` and ended with it.

    A script that uses them has to have the usual `if __name__ == "__main__":`, since they are not forked: threads of
    torch do not survive that. A task cannot have processes of its own, such as those of a data loader. Where there are
    GPUs, the workers are spread over them.

    Args:
        workers: how many; None takes one for each core.
        threads: of the CPU, for each.

    Raises:
        UsageError: a number is below 1.
    """

    def __init__(self, workers: int | None = None, *, threads: int = 1):
        self.workers = available_cores() if workers is None else require_count("workers", workers)
        self.threads = require_count("threads", threads)

    def run(
        self, call: Call, tasks: Sequence[Any], *, report: Report = no_progress, ahead: int | None = None
    ) -> Generator[Done, None, None]:
        """Do the tasks, see `Engine.run`."""
        return _Crew(self, _packed(call, "what is to be done"), list(tasks), report, ahead).work()


def _packed(thing: Any, what: str) -> bytes:
    """Bytes for another process of ours. By plain pickle: torch would put tensors into shared memory, which is scarce
    in containers and is lost with the process that made it."""
    try:
        return pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    except UNSENDABLE as error:
        raise cannot_be_sent(what, error) from error


class _Ending(NamedTuple):
    """The last word of a worker that is of no more use."""

    reason: str


@dataclass
class _Worker:
    """A process, its number, this end of its line, what it has in hand, and why it ends."""

    number: int
    process: SpawnProcess
    line: connection.Connection
    ready: bool = False
    task: int | None = None
    units: int = 0
    reason: str = ""


class _Crew:
    """Workers and their tasks, from beginning to end."""

    def __init__(self, engine: Processes, call: bytes, tasks: list[Any], report: Report, ahead: int | None):
        self._engine, self._call, self._tasks, self._report = engine, call, tasks, report
        self._ahead = len(tasks) if ahead is None else ahead * engine.workers
        self._waiting = deque(range(len(tasks)))
        self._tries = [0] * len(tasks)
        self._workers: list[_Worker] = []

    def work(self) -> Generator[Done, None, None]:
        try:
            for number in range(min(self._engine.workers, len(self._tasks))):
                self._workers.append(self._start(number))
            # When all are starting: a long message is taken only by one that has started.
            for worker in self._workers:
                self._send(worker, self._call)
                self._give(worker)
            while any(worker.task is not None for worker in self._workers):
                for worker in self._heard():
                    done = self._hear(worker)
                    if done is not None:
                        yield done
        finally:
            self._stop()

    def _start(self, number: int) -> _Worker:
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._engine.threads, number), daemon=True)
        process.start()
        there.close()
        return _Worker(number, process, here)

    def _give(self, worker: _Worker) -> None:
        """Its next task, if any is left and not too far ahead of others."""
        worker.task, worker.units = None, 0
        in_hand = [each.task for each in self._workers if each.task is not None]
        if self._waiting and self._waiting[0] < min([*in_hand, self._waiting[0]]) + self._ahead:
            worker.task = self._waiting.popleft()
        if worker.task is not None:
            sent = self._send(worker, _packed((worker.task, self._tasks[worker.task]), "a task"))
            # One that was ready and has died while it was idle has not tried this one.
            self._tries[worker.task] += sent or not worker.ready

    def _give_all(self) -> None:
        for worker in self._workers:
            if worker.task is None:
                self._give(worker)

    def _send(self, worker: _Worker, content: bytes) -> bool:
        """Whether it was alive; if not, its line says so when it is heard."""
        try:
            worker.line.send_bytes(content)
        except OSError:
            return False
        return True

    def _heard(self) -> list[_Worker]:
        lines = {worker.line: worker for worker in self._workers if worker.task is not None}
        return [lines[line] for line in connection.wait(list(lines))]  # type: ignore[index]

    def _hear(self, worker: _Worker) -> Done | None:
        """One message of a worker; what it means for the table of answers."""
        try:
            packed = worker.line.recv_bytes()
        except (EOFError, OSError):
            return self._lost(worker)
        message = pickle.loads(packed)
        if message is READY:
            worker.ready = True
            return None
        if isinstance(message, Done):
            worker.task = None
            self._give_all()
            return message
        if isinstance(message, _Ending):
            worker.reason = message.reason
            return None
        if isinstance(message, BaseException):
            raise message
        note, units = message
        worker.units += units
        self._report(note, units)
        return None

    def _lost(self, worker: _Worker) -> Done | None:
        """Put another one in the place of a worker that is gone."""
        worker.line.close()
        _end(worker.process, SECONDS_TO_END)
        status = worker.process.exitcode
        if not worker.ready and status and status > 0:
            raise UsageError(
                f"a process could not start (status {status}, see above); a script that uses several needs the usual "
                'if __name__ == "__main__":, or one worker'
            )
        number, self._workers = worker.task, [each for each in self._workers if each is not worker]
        assert number is not None
        self._report("", -worker.units)
        done = None
        if self._tries[number] < TRIES:
            self._waiting.appendleft(number)
        else:
            how = f"ended with status {status}, {TRIES} times; was there memory enough?"
            if worker.reason:
                how = f"could not use its GPU any more, {TRIES} times ({worker.reason})"
            done = Done(number, failure=Lost(f"its process {how}"))
        self._give_all()
        if self._waiting:
            self._replace(worker.number)
        return done

    def _replace(self, number: int) -> None:
        self._workers.append(worker := self._start(number))
        self._send(worker, self._call)
        self._give(worker)

    def _stop(self) -> None:
        for worker in self._workers:
            if worker.task is None:
                worker.line.close()  # which ends it
            else:
                worker.process.terminate()
        for worker in self._workers:
            _end(worker.process, SECONDS_TO_STOP)
            worker.line.close()


def _end(process: SpawnProcess, seconds: float) -> None:
    """Wait for the end of a process, and not for longer than some seconds."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()


# --- In the other process -------------------------------------------------------------------------------------------


def _serve(line: connection.Connection, threads: int, number: int) -> None:
    """Do tasks until the line is closed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # Of a terminal, Ctrl-C reaches every process; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _settle(threads, number)
    try:
        line.send_bytes(pickle.dumps(READY))
        packed = line.recv_bytes()
        try:
            call = pickle.loads(packed)
        except Exception as error:
            line.send_bytes(pickle.dumps(_unknown_here(error)))
            return
        del packed
        while True:
            task_number, task = pickle.loads(line.recv_bytes())

            def report(note: str = "", /, advance: int = 1) -> None:
                line.send_bytes(pickle.dumps((note, advance)))

            try:
                answer = _answer(call, task_number, task, report)
            except GpuFailed as failed:
                traceback.print_exception(failed)
                line.send_bytes(pickle.dumps(_Ending(failed.reason)))
                sys.stderr.flush()
                os._exit(1)  # what else ends with a process may wait for the GPU
            line.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the parent has no more to do, is gone, or has ended this by SIGTERM


def _unknown_here(error: Exception) -> UsageError:
    """What a notebook or an interactive session defines, another process does not find."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"what is to be done is not known to another process ({reason}); {DEFINE}")


def _settle(threads: int, number: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _answer(call: Call, number: int, task: Any, report: Report) -> bytes:
    try:
        return pickle.dumps(answer_of(call, number, task, report), protocol=pickle.HIGHEST_PROTOCOL)
    except GpuFailed:
        raise
    except Exception as error:
        # A traceback does not travel; a note does.
        error.add_note(f"In another process:\n{traceback.format_exc()}")
        try:
            content = pickle.dumps(error)
            pickle.loads(content)
        except Exception:
            content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        return content


def _die_with_parent() -> None:
    """A signal may end the parent before it can end this process."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
