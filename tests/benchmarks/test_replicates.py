"""The benchmark of `fit_replicates`: what it compares; never times."""

import pytest
import torch

from benchmarks.replicates import _SecondEpoch, alone, digits, run, together
from vaentropy.data import load


@pytest.mark.slow
def test_a_row_for_each_batch_size_and_number_of_threads():
    before = torch.get_num_threads()
    result = run(quick=True, threads=(1, 2))
    rows = [row for row in result.rows if row["device"] == "cpu"]
    assert [(row["batch"], row["threads"]) for row in rows] == [(100, 1), (100, 2), (200, 1), (200, 2)]
    assert all(row["together points/s"] > 0 and "(" in row["together / one after the other"] for row in rows)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("train", [together, alone])
def test_both_sides_are_timed(train):
    assert train(digits(100), 2, 50) > 0


def test_the_clock_counts_second_epochs_alone():
    clock = _SecondEpoch()
    for epoch in (1, 3, 1, 3):
        clock({"epoch": epoch})
    assert clock.seconds == 0
    clock({"epoch": 2})
    assert clock.seconds > 0


def test_digits_are_repeated():
    x = digits(2000)
    once = len(load("digits").train)
    assert x.shape == (2000, 64) and torch.equal(x[: 2000 - once], x[once:])
