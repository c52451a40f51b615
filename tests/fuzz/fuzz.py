"""Reads wrong files by the ten thousand: each is read, or refused by a VaentropyError of one line.

    python tests/fuzz/fuzz.py --cases 100000 --seed 0

prints one JSON object: outcomes per target, and what should not have happened: another exception, a crash, no end, or
too much memory. vaentropy is imported as users do, without the tests' import hook. A case depends on the seed and its
number alone: `--only NUMBER` repeats one.
"""

import argparse
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # where this file does not stand for the folder that it is in

from fuzz.targets import TARGETS, prepare  # noqa: E402
from vaentropy.errors import VaentropyError  # noqa: E402

LONGEST = 60  # seconds per case
MOST_MEMORY = 2**30  # bytes above what the process has after the preparations
ADDRESS_SPACE = 8 * 2**30
CASES_PER_PROCESS = 2000
SHOWN = 20


class Hangs(BaseException):
    """A case took too long."""


def hangs(*_: Any) -> None:
    raise Hangs(f"no end after {LONGEST} seconds")


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def outcome(number: int, seed: int) -> dict[str, Any]:
    """One case."""
    rng = random.Random(f"{seed} {number}")
    name = [*TARGETS][number % len(TARGETS)]
    before = memory()
    signal.alarm(LONGEST)
    try:
        TARGETS[name](rng)
        result = {"outcome": "read"}
    except VaentropyError as error:
        good = str(error).isprintable() and str(error) != ""
        result = {"outcome": type(error).__name__} if good else {"outcome": "not one line", "error": repr(str(error))}
    except BaseException as error:
        where = traceback.format_exc().splitlines()[-9:]
        result = {"outcome": "unhandled", "error": f"{type(error).__name__}: {error}"[:300], "where": where}
    finally:
        signal.alarm(0)
    if memory() - before > MOST_MEMORY:
        result = {"outcome": "too much memory", "error": f"{(memory() - before) / 2**20:.0f} MiB more, {result}"}
    return {"number": number, "target": name, **result}


def work(numbers: range, seed: int) -> tuple[list[dict[str, Any]], int, int]:
    """Cases in a process of their own, as one of them may crash it: outcomes, its wait status, its memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            for number in numbers:
                print(json.dumps(outcome(number, seed)), file=pipe, flush=True)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        results = [json.loads(line) for line in pipe]
    _, status, used = os.wait4(child, 0)
    return results, status, used.ru_maxrss * 1024


def run(cases: int, seed: int) -> dict[str, Any]:
    start, first, most = time.perf_counter(), 0, 0
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    bad: list[dict[str, Any]] = []
    while first < cases:
        numbers = range(first, min(cases, first + CASES_PER_PROCESS))
        results, status, used = work(numbers, seed)
        first, most = first + len(results), max(most, used)
        if status:
            target = [*TARGETS][first % len(TARGETS)]
            results.append({"number": first, "target": target, "outcome": "crash", "error": f"wait status {status}"})
            first += 1
        for result in results:
            counts[result["target"]][result["outcome"]] += 1
            if "error" in result:
                bad.append(result)
                print(json.dumps(result), file=sys.stderr, flush=True)  # at once: a long run takes a quarter of an hour
    return {
        "cases": cases,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_mib": round(most / 2**20),
        "bad": len(bad),
        "outcomes": {name: dict(sorted(counts[name].items())) for name in TARGETS},
        "first_bad": bad[:SHOWN],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat the case of this number")
    given = parser.parse_args()
    logging.disable()
    os.fsync = lambda _: None  # a few thousand times slower, and no part of what is tried
    signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        prepare()
        result = run(given.cases, given.seed) if given.only is None else outcome(given.only, given.seed)
        os.chdir("/")
    print(json.dumps(result, indent=1))
    return 1 if result.get("bad") else 0


if __name__ == "__main__":
    sys.exit(main())
