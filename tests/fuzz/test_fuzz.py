"""A short run of the fuzzer; the long one is `python tests/fuzz/fuzz.py --cases 100000 --seed 0`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_wrong_files_are_read_or_refused_in_one_line():
    script = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(script), "--cases", "2000", "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["bad"] == 0, result["first_bad"]
    assert all(sum(outcomes.values()) == 125 for outcomes in result["outcomes"].values())
    assert result["peak_memory_mib"] < 1500
