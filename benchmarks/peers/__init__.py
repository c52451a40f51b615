"""Peers: other libraries at the same work, each in an environment and a process of its own.

    with peer("pythae", threads=1) as seconds_per_step:
        seconds_per_step(batch_size=64, steps=100)

The process stays, so that its measurements take turns with ours. `NAME.txt` here holds the pinned requirements of a
peer, `run_NAME.py` the script that `serve`s its measurements.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

__all__ = ["PeerMissing", "driven", "environment", "peer"]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venvs"
SECONDS_TO_INSTALL = 900
SECONDS_TO_ANSWER = 300  # a library is imported, or a step compiled, and an epoch measured
SECONDS_TO_END = 10
STAMP = "requirements.txt"  # in a finished environment, what it was made from
WORDS_OF_REASON = 40

SecondsPerStep = Callable[..., float]


class PeerMissing(Exception):
    """A peer cannot be measured here; the message says why, for a note."""


@contextmanager
def peer(name: str, *, threads: int) -> Iterator[SecondsPerStep]:
    """A peer's process; what it gives measures so many steps there, and returns the seconds that one took.

    The first call with a batch size and a number of steps prepares and warms up outside of what it measures.

    Args:
        name: "pythae" or "jax".
        threads: that it may use, on the cores that this process may use.

    Raises:
        PeerMissing: it cannot be installed or started, or failed.
    """
    with driven([str(environment(name)), str(HERE / f"run_{name}.py")], threads=threads) as seconds_per_step:
        yield seconds_per_step


def environment(name: str, folder: Path = ENVIRONMENTS) -> Path:
    """The interpreter of a peer's virtual environment, which is made if it is missing or of other requirements.

    Raises:
        PeerMissing: it cannot be made, for want of a network, say.
    """
    requirements = (HERE / f"{name}.txt").read_text()
    home = folder / name
    python, stamp = home / "bin" / "python", home / STAMP
    if stamp.exists() and stamp.read_text() == requirements:
        return python
    print(f"making the environment of {name} in {home} (once)", file=sys.stderr)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _finish([sys.executable, "-m", "venv", "--clear", home])
        # Before everything else, so that its build is decided in one place, as in the Makefile.
        if torch := [line for line in requirements.splitlines() if line.startswith("torch==")]:
            _finish([*install, *torch])
        _finish([*install, "--requirement", HERE / f"{name}.txt"])
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerMissing(f"its environment cannot be made: {_reason(error)}") from error
    stamp.write_text(requirements)
    return python


def _finish(command: Sequence[str | Path]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL)


def _reason(error: Exception) -> str:
    said = error.stderr or error.stdout if isinstance(error, subprocess.CalledProcessError) else None
    return _last_words(said) or " ".join(str(error).split())


def _last_words(said: str | None) -> str:
    lines = [line for line in (said or "").splitlines() if line.strip()]
    return " ".join(lines[-1].split()[:WORDS_OF_REASON]) if lines else ""


@contextmanager
def driven(
    command: Sequence[str], *, threads: int, seconds_to_answer: float = SECONDS_TO_ANSWER
) -> Iterator[SecondsPerStep]:
    """A process that answers as `serve` does, for as long as the context is open.

    Args:
        command: that starts it.
        threads: that it may use.
        seconds_to_answer: that it has for its first line, and for each answer.

    Raises:
        PeerMissing: it does not start, ended before it had answered, or did not answer in time.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as talk:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=talk,
                text=True,
                # What a library writes beside its work goes when the process goes.
                cwd=folder,
                env=_with_threads(threads) | {"TMPDIR": folder},
            )
        except OSError as error:
            raise PeerMissing(f"it does not start: {error.strerror}") from error
        try:
            _answer(process, talk, seconds_to_answer)

            def seconds_per_step(*, batch_size: int, steps: int) -> float:
                answer = _answer(process, talk, seconds_to_answer, batch_size=batch_size, steps=steps)
                return answer["seconds_per_step"]

            yield seconds_per_step
        finally:
            _end(process)


def _with_threads(threads: int) -> dict[str, str]:
    """The environment of a process that may use so many threads: OpenMP's, and XLA's pool."""
    # JAX sizes its pool by the cores that the process may use, or by this.
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), str(threads))
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    return {**os.environ, **pools, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _answer(process: subprocess.Popen[str], talk: IO[str], seconds: float, **request: int) -> dict[str, Any]:
    """The next line that the process answers, to a request if there is one."""
    assert process.stdin is not None and process.stdout is not None
    try:
        if request:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        # One answer to each request, so that no line waits in the buffer, which select does not see.
        if not select.select([process.stdout], [], [], seconds)[0]:
            process.kill()
            raise PeerMissing(f"it did not answer in {seconds:g} s")
        return json.loads(process.stdout.readline())
    except (OSError, ValueError) as error:
        talk.seek(0)
        raise PeerMissing(f"it failed: {_last_words(talk.read()) or 'it ended without a word'}") from error


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    with suppress(OSError):  # it is gone already
        process.stdin.close()
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
