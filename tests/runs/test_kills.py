"""SIGKILL at random instants: nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize(("kills", "kind"), [(100, []), (20, ["--continued"])])
def test_a_run_killed_at_random_instants_ends_as_one_left_alone(kills, kind):
    script = Path(__file__).parent / "kills.py"
    command = [sys.executable, script, "--kills", str(kills), *kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == kills and result["identical"]
    assert {"before its settings were written", "before its first checkpoint"} <= set(result["at_first_writes"])
    assert result["when"]["in training"] > 0.3 * kills
