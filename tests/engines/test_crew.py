"""What becomes of tasks whose workers end, with threads that play the processes."""

import os
import pickle
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import SimpleNamespace

import pytest

from vaentropy.engines import Done, Lost, Processes, processes

SECONDS = 10.0  # within which all is done


class Played(SpawnProcess):
    """A process as the crew knows it, played by a thread."""

    exitcode = None

    def __init__(self, play, line, number):
        self.number, self.ended = number, threading.Event()
        # The crew closes the one that it gives away.
        self._line = Connection(os.dup(line.fileno()))
        self._thread = threading.Thread(target=self._work, args=(play,), daemon=True)

    def _work(self, play):
        try:
            self._line.send_bytes(pickle.dumps(processes.READY))
            self._line.recv_bytes()
            while True:
                number, task = pickle.loads(self._line.recv_bytes())
                play(self, number, task)
        except (EOFError, OSError, threading.BrokenBarrierError):
            pass  # as a process that has died
        finally:
            self._line.close()

    def answer(self, content):
        self._line.send_bytes(pickle.dumps(content))

    def leave(self):
        self._line.close()

    def start(self):
        self._thread.start()

    def join(self, timeout=None):
        assert timeout is not None or self.ended.is_set(), "it would be waited for without end"
        if not self.ended.is_set():
            self._thread.join(timeout)

    def is_alive(self):
        return self._thread.is_alive() and not self.ended.is_set()

    def kill(self):
        self.ended.set()
        self.exitcode = -9

    terminate = kill


@pytest.fixture
def run(monkeypatch):
    """Answers by processes that a function plays, and those processes."""
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.1)
    monkeypatch.setattr(processes, "SECONDS_TO_STOP", 0.1)

    def run(play, num_tasks, workers, ahead=None):
        started = []

        def process(target, args, daemon):
            started.append(Played(play, args[0], args[-1]))
            return started[-1]

        monkeypatch.setattr(processes, "get_context", lambda how: SimpleNamespace(Pipe=Pipe, Process=process))
        done = list(Processes(workers).run(print, range(num_tasks), ahead=ahead))
        return {each.number: each for each in done}, started

    return run


class Unreadable:
    def __reduce__(self):
        return open, ("/nowhere/at/all",)


def test_an_answer_that_cannot_be_read_is_raised_and_no_lost_worker(run):
    with pytest.raises(FileNotFoundError):
        run(lambda process, number, task: process.answer(Done(number, Unreadable())), 1, 1)


def test_a_worker_that_only_closes_its_line_is_not_waited_for_and_the_next_has_its_number(run):
    left = []

    def play(process, number, task):
        if process.number == 1 and not left:
            left.append(process)
            process.leave()
            process.ended.wait(SECONDS)
        process.answer(Done(number, task))

    done, started = run(play, 4, 2)
    assert done == {n: Done(n, n) for n in range(4)}
    assert [process.number for process in started] == [0, 1, 1] and left[0].exitcode == -9


def test_one_that_dies_while_it_is_idle_costs_its_next_task_no_try(run):
    tries, idle_is_gone = [], threading.Event()

    def play(process, number, task):
        if number == 0:  # so far behind it the other one gets no task
            assert idle_is_gone.wait(SECONDS)
        if number == 3:  # which the one that is gone would have been given
            tries.append(process)
            process.leave()
            return
        process.answer(Done(number, task))
        if number == 1:
            process.leave()
            idle_is_gone.set()

    done, _ = run(play, 4, 2, ahead=1)
    assert isinstance(done[3].failure, Lost) and len(tries) == processes.TRIES
    assert [done[n] for n in range(3)] == [Done(n, n) for n in range(3)]


def test_all_that_are_idle_go_on_when_a_task_is_given_up(run):
    others, together = threading.Barrier(3), threading.Barrier(2)
    tries = []

    def play(process, number, task):
        if number == 0:
            if not tries:
                others.wait(SECONDS)
            tries.append(process)
            process.leave()
            return
        if number in (1, 2):
            process.answer(Done(number, task))
            others.wait(SECONDS)
            return
        together.wait(SECONDS)
        process.answer(Done(number, task))

    done, _ = run(play, 5, 3, ahead=1)
    assert isinstance(done[0].failure, Lost) and len(tries) == processes.TRIES
    assert all(done[n] == Done(n, n) for n in range(1, 5))
