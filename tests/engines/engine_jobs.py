"""What the tests have done in other processes, which find it by the name of this module."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from vaentropy.errors import DataError


class Unpicklable(Exception):
    """One whose copy cannot be made from its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def double(task, report):
    """Twice the task, by a unit of work for each."""
    for _ in range(task):
        report(f"task {task}")
    return 2 * task


def odd(task, report):
    """Failures of three kinds."""
    if task == "user":
        raise DataError("there is no data")
    if task == "system":
        raise FileNotFoundError(2, "No such file", "there")
    if task == "bug":
        raise ZeroDivisionError("a bug")
    if task == "strange bug":
        raise Unpicklable("this", "that")
    return task


def half(task, report):
    """One that fails after some work."""
    report(f"task {task}", 2)
    if task:
        raise DataError("not this one")


def process(task, report):
    """In which process, after a while in which others begin."""
    time.sleep(0.2)
    return os.getpid()


@dataclass(frozen=True)
class Killed:
    """Kills its process in the middle of some tasks, as often as is asked for; each try leaves a mark."""

    folder: Path
    tasks: tuple[int, ...]
    times: int

    def __call__(self, task, report):
        report(f"task {task}", 2)
        tries = len(list(self.folder.glob(f"{task}-*")))
        (self.folder / f"{task}-{tries}").touch()
        if task in self.tasks and tries < self.times:
            time.sleep(1.0)  # for what was told to arrive
            os.kill(os.getpid(), signal.SIGKILL)
        report(f"task {task}", 1)
        return task


@dataclass(frozen=True)
class Endless:
    """Tasks that leave the number of their process and do not end, unless they are stopped as by Ctrl-C."""

    folder: Path

    def __call__(self, task, report):
        if task == 0:
            while len(list(self.folder.glob("began-*"))) < 1:
                time.sleep(0.05)
            return task
        (self.folder / f"began-{os.getpid()}").touch()
        try:
            while True:
                time.sleep(0.05)
        except KeyboardInterrupt:
            (self.folder / f"stopped-{os.getpid()}").touch()
            raise


@dataclass(frozen=True)
class Trained:
    """As long as a signal is taken between steps, as trainings do."""

    folder: Path

    def __call__(self, task, report):
        from vaentropy.training.interruption import interruption

        with interruption() as taken:
            (self.folder / f"began-{task}").touch()
            try:
                while True:
                    time.sleep(0.05)
                    report("")
                    taken.check()
            finally:
                (self.folder / f"checkpoint-{task}").touch()


_without_gpu = False


@dataclass(frozen=True)
class OnGpu:
    """Loses the GPU of its process in the midst of some tasks, as often as is asked for; from then on nothing works."""

    folder: Path
    tasks: tuple[int, ...]
    times: int

    def __call__(self, task, report):
        global _without_gpu
        tries = len(list(self.folder.glob(f"{task}-*")))
        (self.folder / f"{task}-{tries}").touch()
        report(f"task {task}", 1)
        if _without_gpu or (task in self.tasks and tries < self.times):
            _without_gpu = True
            try:
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with more")
            except RuntimeError as error:
                raise DataError("what a user reads") from error
        return task
