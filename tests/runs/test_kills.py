"""SIGKILL at random instants: nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_killed_at_100_random_instants_ends_as_one_left_alone():
    script = Path(__file__).parent / "kills.py"
    done = subprocess.run([sys.executable, script, "--kills", "100"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 100 and result["identical"]
    assert result["when"]["in training"] > 30
