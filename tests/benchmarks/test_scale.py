"""The plan for a billion rows: its arithmetic, and that it is made of measured costs; never times."""

import math
from dataclasses import replace

import pytest

from benchmarks.scale import GPU, WORKLOADS, Costs, plan, run

COSTS = Costs(step=1e-3, row=1e-6, evaluated_row=1e-6, message=1e-4, byte=1e-9, read_byte=1e-8, sent_byte=1e-9)


def test_seconds_of_an_epoch():
    table = WORKLOADS[1]
    assert table.data_dim == 8 and table.row_bytes == 32
    seconds = plan(table, COSTS, 4, rows=65_536 * 10)
    gradients = sum(p.numel() for p in table.model().parameters()) * 4
    assert seconds["steps"] == pytest.approx(10e-3)
    assert seconds["rows"] == pytest.approx(163_840 * 1e-6)
    assert seconds["reading"] == pytest.approx(163_840 * 32 * 1e-8)
    assert seconds["rows sent"] == pytest.approx(163_840 * 0.75 * 32 * 1e-9)
    assert seconds["messages"] == pytest.approx(10 * (3e-4 + 1.5 * gradients * 1e-9))


def test_one_process_sends_nothing():
    seconds = plan(WORKLOADS[0], replace(COSTS, **GPU), 1)
    assert seconds["messages"] == seconds["rows sent"] == 0.0 and seconds["rows"] > 0


@pytest.mark.slow
def test_a_row_for_each_way():
    result = run(quick=True)
    assert len(result.rows) == 24 and {row["processes"] for row in result.rows} >= {"1 CPU", "64 H200"}
    for costs in result.data.values():
        assert all(map(math.isfinite, costs.values()))
        # The others are differences of two times, which noise may make negative.
        assert all(costs[name] > 0 for name in ("message", "evaluated_row", "read_byte", "sent_byte"))
