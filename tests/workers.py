"""An engine that sends everything but starts no process, and what kills the process that meets it, for the tests."""

import os
import pickle
import random
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from vaentropy.data.source import Derived
from vaentropy.engines import Done, Engine, Processes, Ray
from vaentropy.runs.output import Parts


class Sent(Engine):
    """Does each task as often as told, as where answers of workers are lost, in any order; all travels by pickle."""

    workers = 3

    def __init__(self, times=1, seed=0):
        self.times, self.seed, self.sizes = times, seed, []

    def run(self, call, tasks, *, report=lambda note="", /, advance=1: None, ahead=None):
        content = pickle.dumps(call)
        order = random.Random(self.seed).sample(range(len(tasks)), len(tasks))
        for number in order:
            task = pickle.dumps(tasks[number])
            self.sizes.append(len(task))
            for _ in range(self.times):
                # As a worker of its own.
                answer = pickle.loads(content)(pickle.loads(task), report)
            yield Done(number, pickle.loads(pickle.dumps(answer)))


def two_workers(kind: str) -> Engine:
    """Two other processes, "processes" or those of "ray", which is not imported before a test asks for it."""
    if kind == "processes":
        return Processes(2)
    pytest.importorskip("ray")
    return Ray(workers=2)


def die_once(marker: Path):
    """End this process by SIGKILL, unless another one was ended here before."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal(Derived):
    """A source of which reading some shards kills the process, once each; those that ask may be at it for a while."""

    def __init__(self, source, shards, folder):
        super().__init__(source)
        self.deadly, self.folder = shards, folder

    def read(self, shard):
        if shard in self.deadly:
            die_once(self.folder / f"read-{shard}")
        return self.source.read(shard)


class FatalParts(Parts):
    """A folder of which writing some parts kills the process: in the midst, and when the part is whole."""

    midst, whole = 1, 2

    @contextmanager
    def part(self, number):
        def deadly(rows):
            write(rows)
            if number == self.midst:
                die_once(self.path.with_name("midst"))

        with super().part(number) as write:
            yield deadly
        if number == self.whole:
            die_once(self.path.with_name("whole"))
