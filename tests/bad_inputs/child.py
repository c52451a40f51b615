"""Runs every case in one process that imports vaentropy as users do, without the tests' import hook.

    python tests/bad_inputs/child.py [NAME...]

prints one JSON object per case: status, stdout, stderr, the exception, files that changed or are new.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from bad_inputs.case import Case  # noqa: E402
from bad_inputs.table import CASES  # noqa: E402
from vaentropy.cli import main  # noqa: E402

NOBODY = 65534
SIZES = {"tiny files": 400, "small files": 2500}  # bytes
ADDRESS_SPACE = 8 * 2**30  # what would fill the machine's memory fails instead
LONGEST = 60  # seconds


class Hangs(BaseException):
    """A case took too long; no Exception, so that nothing takes it for the error of a file."""


def hangs(*_: Any) -> None:
    raise Hangs(f"no end after {LONGEST} seconds")


def files() -> dict[str, str]:
    """A digest of every file below the working directory."""
    found = {}
    for path in sorted(Path().rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder" if path.is_dir() else "special"
    return found


def captured(case: Case) -> dict[str, Any]:
    """Do it, with what goes to the descriptors 1 and 2 captured."""
    result: dict[str, Any] = {"status": None, "error": None}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = os.dup(1), os.dup(2)
        full = os.open("/dev/full", os.O_WRONLY) if case.confined == "full stdout" else None
        os.dup2(out.fileno() if full is None else full, 1)
        os.dup2(err.fileno(), 2)
        try:
            result |= done(case)
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError as error:
                    result["error"] = f"what is left in a stream cannot be written: {error}"
            for number, descriptor in enumerate(kept, 1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        for name, file in (("stdout", out), ("stderr", err)):
            file.seek(0)
            result[name] = file.read().decode(errors="backslashreplace")
    return result


def done(case: Case) -> dict[str, Any]:
    """Status of the command, or what a call raised."""
    signal.alarm(LONGEST)
    try:
        if callable(case.do):
            case.do()
            return {"status": 0}
        return {"status": main(case.do)}
    except BaseException as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return {"error": str(error), "kinds": kinds, "traceback": traceback.format_exc()}
    finally:
        signal.alarm(0)


def confined(case: Case) -> dict[str, Any]:
    """The same in a process that may do less."""
    if case.confined != "nobody" and case.confined not in SIZES:
        return captured(case)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if case.confined == "nobody":
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (SIZES[case.confined],) * 2)
            result = captured(case)
        except BaseException:
            result = {"error": traceback.format_exc(), "kinds": []}
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"error": "the process died", "kinds": []}


def run(case: Case, folder: Path) -> dict[str, Any]:
    """One case in its folder."""
    folder.mkdir()
    os.chdir(folder)
    if case.make:
        case.make()
    before, start = files(), time.perf_counter()
    result = confined(case)
    result["seconds"] = round(time.perf_counter() - start, 2)
    after = files()
    os.chdir(folder.parent)
    result["changed"] = [name for name, digest in before.items() if after.get(name) != digest]
    result["new"] = [name for name in after if name not in before]
    result["marker"] = (folder / "marker").exists() or (folder.parent / "marker").exists()
    result["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"name": case.name, **result}


def prepare(root: Path) -> None:
    """A finished run and one without a checkpoint, which cases copy; and everything imported before the forks."""
    import numpy as np
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401

    from vaentropy.config import RunConfig
    from vaentropy.runs import train

    os.chdir(root)
    np.save("x.npy", np.random.default_rng(0).normal(size=(20, 3)))
    settings = {"data": "x.npy", "epochs": 2, "hidden": (4,), "scale": "standard", "evaluation_samples": 2}
    train(RunConfig(**settings, checkpoint_every=1), out="run", progress=False)


def all_cases(names: list[str]) -> None:
    signal.signal(signal.SIGALRM, hangs)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    root = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    root.chmod(0o755)
    os.environ["BAD_INPUTS"] = str(root / "model")
    try:
        (root / "model").mkdir()
        prepare(root / "model")
        for number, case in enumerate(CASES):
            if not names or case.name in names:
                print(json.dumps(run(case, root / f"{number}")), flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(root)


if __name__ == "__main__":
    all_cases(sys.argv[1:])
