"""The benchmark of large images: what it compares; never times, nor how much memory."""

import pytest

from benchmarks.large import Way, measured, run


@pytest.mark.slow
def test_each_way_is_measured_in_a_process_of_its_own():
    result = run(quick=True)
    ways = [(row["precision"], row["micro_batch_size"], row["recompute"]) for row in result.rows]
    assert len(set(ways)) == 8 and ("bf16", 2, "yes") in ways and ("full", "", "") in ways
    assert all(row["images/s"] > 0 and (row["MB"] or 0) >= 0 for row in result.rows)


def test_steps_are_taken():
    images_a_second, megabytes = measured(Way("full", True, 1), "cpu", 2, (1,))
    assert images_a_second > 0 and (megabytes or 0) >= 0
