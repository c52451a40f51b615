"""Scoring many rows: what the benchmark compares, and the same numbers on every engine; never times."""

import numpy as np
import pytest
import torch
from pyarrow import parquet

from benchmarks.scoring import QUICK_POINTS, alike, difference, run, table, trained
from vaentropy.data import Rows
from vaentropy.engines import Ray
from vaentropy.runs import evaluate_run

MOST_APART = 1e-9


@pytest.mark.slow
def test_many_rows_are_scored_alike_by_one_process_and_two(tmp_path):
    result = run(quick=True)
    reading, evaluation, encoding = result.rows
    assert reading[""] == "reading alone" and "(" in evaluation["one / two"]
    assert all(float(row["largest relative difference"]) <= MOST_APART for row in (evaluation, encoding))
    made, data = trained(tmp_path), str(table(tmp_path / "x.parquet", QUICK_POINTS, seed=0))
    one, two = (evaluate_run(made, data=data, engine=engine)["data"] for engine in (None, Ray(workers=2)))
    assert one.num_points == two.num_points == QUICK_POINTS
    assert difference(one.to_dict(), two.to_dict()) <= MOST_APART


def test_differences_are_found():
    x = torch.tensor([[1.0, -4.0], [2.0, 3.0]])
    assert alike(Rows(x), Rows(x)) == 0 and alike(Rows(x), Rows(x + torch.tensor([[0.0, 0.0], [0.0, 1.0]]))) == 0.25
    with pytest.raises(AssertionError):
        alike(Rows(x), Rows(x[:1]))
    one = {"a": [1.0, float("nan")], "b": {"c": -2.0, "name": "x"}}
    assert difference(one, one) == 0
    assert difference(one, {**one, "b": {"c": -2.2, "name": "x"}}) == pytest.approx(1 / 11)


def test_tables_differ_by_their_seed(tmp_path):
    first, again, other = (
        np.stack(parquet.read_table(table(tmp_path / f"{n}.parquet", 40, seed=seed)).columns)
        for n, seed in enumerate((0, 0, 1))
    )
    assert (first == again).all() and (first != other).all() and first.shape == (8, 40) and first.dtype == np.float32
