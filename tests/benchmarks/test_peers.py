import os
import sys
from pathlib import Path

import pytest

from benchmarks.peers import HERE, PeerMissing, driven, environment

# Answers without a library: batch size over steps, so that a mix-up of the two is seen.
FAKE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from serve import serve
print("talk of a library as it is imported")

def measure(batch_size, steps):
    print("talk of a library at work")
    if steps == 0:
        raise ZeroDivisionError("no steps to measure")
    return batch_size / steps

serve(measure, fake="1.0")
"""


def fake(folder: Path, text: str = FAKE) -> list[str]:
    script = folder / "fake.py"
    script.write_text(text)
    return [sys.executable, str(script)]


def test_a_peer_measures_again_and_again(tmp_path):
    # The first print comes before `serve` takes over stdout, as that of no peer here does.
    quiet = FAKE.replace('print("talk of a library as it is imported")', "")
    with driven(fake(tmp_path, quiet), threads=1) as seconds_per_step:
        assert seconds_per_step(batch_size=64, steps=100) == 0.64
        assert seconds_per_step(batch_size=200, steps=10) == 20.0


def test_a_peer_has_the_threads_that_it_is_given_and_the_cores_of_this_process(tmp_path):
    text = f"""
import os, sys
sys.path.insert(0, {str(HERE)!r})
from serve import serve
serve(lambda batch_size, steps: [os.environ["OMP_NUM_THREADS"], sorted(os.sched_getaffinity(0))])
"""
    with driven(fake(tmp_path, text), threads=3) as answer:
        assert answer(batch_size=1, steps=1) == ["3", sorted(os.sched_getaffinity(0))]


def test_a_peer_that_fails_says_why(tmp_path):
    quiet = FAKE.replace('print("talk of a library as it is imported")', "")
    with (
        pytest.raises(PeerMissing, match="it failed: ZeroDivisionError: no steps to measure"),
        driven(fake(tmp_path, quiet), threads=1) as seconds_per_step,
    ):
        seconds_per_step(batch_size=64, steps=0)


@pytest.mark.parametrize("silent", [pytest.param("begins", marks=pytest.mark.slow), "answers"])
def test_a_peer_that_does_not_answer_is_ended_and_says_so(tmp_path, silent):
    text = f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(HERE)!r})
from serve import serve
pathlib.Path({str(tmp_path)!r}, "pid").write_text(str(os.getpid()))
if {silent!r} == "begins":
    time.sleep(60)
serve(lambda batch_size, steps: time.sleep(60))
"""
    with (
        pytest.raises(PeerMissing, match=r"it did not answer in 2 s"),
        driven(fake(tmp_path, text), threads=1, seconds_to_answer=2.0) as seconds_per_step,
    ):
        assert silent == "answers"
        seconds_per_step(batch_size=64, steps=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import a_library_that_is_not_there", "No module named 'a_library_that_is_not_there'"),
        (FAKE, "it ended without a word"),  # what stands on stdout is not an answer
        ("", "it ended without a word"),
    ],
)
def test_a_peer_that_does_not_begin_says_why(tmp_path, text, reason):
    with pytest.raises(PeerMissing, match=reason), driven(fake(tmp_path, text), threads=1):
        pass


def test_a_peer_without_an_interpreter_is_missing(tmp_path):
    with pytest.raises(PeerMissing, match="it does not start"), driven([str(tmp_path / "nothing")], threads=1):
        pass


def test_an_environment_that_cannot_be_made_is_a_reason_to_skip(tmp_path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(PeerMissing, match="its environment cannot be made"):
        environment("jax", tmp_path / "a file")


def test_an_environment_is_made_once(tmp_path):
    home = tmp_path / "jax"
    home.mkdir()
    (home / "requirements.txt").write_text((HERE / "jax.txt").read_text())
    assert environment("jax", tmp_path) == home / "bin" / "python"


@pytest.mark.parametrize("name", ["jax", "pythae"])
def test_requirements_are_pinned(name):
    lines = (HERE / f"{name}.txt").read_text().split()
    assert lines and all("==" in line for line in lines)
    assert (HERE / f"run_{name}.py").exists()
