"""A user's mistake, or a damaged file, is one line that says what to do; nothing is overwritten, no code is run.

The cases run in a process of their own without the import hook of the tests, which users do not have either.
"""

import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from .case import MARKER, Case
from .data_cases import malicious_pickle, object_array
from .table import CASES

SECONDS = 600  # a hang, not slowness: these machines are shared
MEGABYTES = 2000


@pytest.fixture(scope="module")
def report():
    """What became of each case."""
    child = Path(__file__).with_name("child.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, str(child)], capture_output=True, text=True, timeout=SECONDS, env=environment, check=False
    )
    results = {result["name"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"died after {list(results)[-1:]}:\n{done.stderr}"
    return results


def test_names_are_different():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 100


def test_the_malicious_files_do_harm_where_they_are_trusted(tmp_path, monkeypatch):
    # Or it would mean nothing that no case makes the marker.
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", object_array(), allow_pickle=True)
    harm = (
        lambda: pickle.loads(malicious_pickle()),
        lambda: np.load("x.npy", allow_pickle=True),
        lambda: yaml.unsafe_load("!!python/object/apply:os.mkdir ['marker']"),
    )
    for trust in harm:
        with suppress(FileExistsError):  # the second object of the array
            trust()
        Path(MARKER).rmdir()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, report):
    result = report[case.name]
    if case.confined == "nobody" and os.getuid() != 0:
        pytest.skip("only root can become another user")
    assert not result["marker"], "code from a file was run"
    changed = [name for name in result["changed"] if not name.startswith(tuple(case.changes))]
    assert changed == [], "a file was overwritten"
    assert result["megabytes"] < MEGABYTES
    if case.works:
        assert result["status"] == 0, result
        assert result["stdout"].replace("\n", "").isprintable()
        return
    assert result["new"] == [], "something is left behind"
    if callable(case.do):
        assert result["error"] is not None, "nothing was raised"
        assert "VaentropyError" in result["kinds"], result["traceback"]
        assert result["stderr"] == "", "a warning beside the error"
        message = result["error"]
    else:
        assert result["error"] is None, result.get("traceback", result["error"])
        assert result["status"] == 2, result
        assert result["stdout"] == ""
        assert result["stderr"].startswith("vaentropy: ") and result["stderr"].endswith("\n")
        message = result["stderr"][:-1]
    assert message.isprintable(), "more than one line, or control characters"
    assert [word for word in case.says if word not in message] == [], message
