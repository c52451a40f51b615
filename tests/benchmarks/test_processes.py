"""The benchmark of several processes: what it compares; never times."""

import pytest

from benchmarks.processes import run, seconds


@pytest.mark.slow
def test_a_row_for_each_batch_size():
    (row,) = run(quick=True).rows
    assert (row["batch"], row["points"]) == (256, 768)
    assert row["one process, ms a step"] > 0 and row["two, ms a step"] > 0
    assert all("(" in row[f"one / two{what}"] for what in (", an epoch", ", the whole fit", " apart, an epoch"))


def test_an_epoch_is_a_part_of_a_training():
    epoch, whole = seconds(8, 16)
    assert 0 < epoch < whole
