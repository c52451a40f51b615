"""Memory of processes, as the benchmarks measure it."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.measure import grown, most_memory

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="a process's peak is known on Linux alone"
)

# In a process of its own, as the benchmarks: what others have freed here may be used once more, and is no growth.
# The larger one before, so that only a count from anew can find the smaller.
SCRIPT = """
import torch
from benchmarks.measure import grown
from benchmarks.large import Way, measured
for megabytes in (600, 50):
    with grown() as found:
        x = torch.ones(megabytes * 10**6, dtype=torch.uint8)
        del x
    print(found[0] / 1e6)
print(measured(Way("full", False, None), "cpu", 4, (16,))[1])
"""


@pytest.mark.slow
def test_a_peak_is_that_of_what_is_gone_again():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=100)
    *tensors, steps = map(float, done.stdout.split())
    assert tensors == pytest.approx([600, 50], abs=2)
    # The decoder's output, its activation or its gradient, and the head's.
    assert steps > 2 * 4 * 4 * 16 * 256**2 / 1e6


def test_memory_of_another_process_is_its_own():
    wait = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-S", "-c", wait], stdin=subprocess.PIPE) as child:
        here, there = most_memory(), most_memory(child.pid)
        child.communicate()
    # This process, with PyTorch in it, is what the other one came from.
    assert here and there and there < here / 3
    assert most_memory(child.pid) is None


def test_what_cannot_be_told_is_not_told(monkeypatch):
    def refuse(*args, **options):
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    with grown() as found:
        pass
    assert found == []
