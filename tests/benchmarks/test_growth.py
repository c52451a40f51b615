import json

import pytest

from benchmarks import growth
from benchmarks.growth import AXES, Setting
from benchmarks.results import Result, save_figure


def result(quick: bool = True) -> Result:
    """As `run` makes it, of costs that are known: cubic time, square root in memory."""
    points = [
        {
            "axis": name,
            "operation": operation,
            "value": value,
            "seconds": value**3.0,
            "low": value**3.0,
            "high": value**3.0,
            "megabytes": 100 * value**0.5,
        }
        for name, axis in AXES.items()
        for operation in axis.operations
        for value in (axis.quick if quick else axis.values)
    ]
    return Result("How cost grows", rows=list(growth.table(points)), data={"points": points}, figure=growth.figure)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_slope_is_the_power_at_the_upper_end(power):
    values = [1, 10, 100, 1000]
    # A constant cost that hides the power at small values is not looked at.
    costs = [5.0, *(3 * value**power for value in values[1:])]
    assert growth.slope(values, costs) == pytest.approx(power, abs=1e-12)


def test_worse_than_linear_is_flagged():
    rows = result(quick=False).rows
    assert [row["slope of time"] for row in rows] == ["3.00 (worse than linear)"] * len(rows)
    assert [row["slope of memory"] for row in rows] == ["0.50"] * len(rows)


def test_each_setting_differs_from_the_base_in_one_thing():
    for axis in AXES.values():
        for value, setting in axis.settings(quick=False):
            assert getattr(setting, axis.field) == value
            assert {**vars(setting), axis.field: 0} == {**vars(axis.base), axis.field: 0}


def test_cost_counts_all_of_the_work():
    few = growth.cost("fit", Setting(num_points=400, data_dim=4))
    many = growth.cost("fit", Setting(num_points=400, data_dim=4, num_replicates=3))
    assert 0 < few["low"] <= few["seconds"] <= few["high"]
    assert 0 < many["low"] <= many["seconds"] <= many["high"]


def test_figure_is_the_same_for_the_same_result_and_small(tmp_path):
    for name in ("a", "b"):
        save_figure(growth.figure(result(quick=False)), tmp_path / f"{name}.svg")
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert len(first) < 150_000


def test_figure_needs_no_memory_and_no_axis_that_was_not_measured():
    known = result().data["points"]
    points = [{**point, "megabytes": None} for point in known if point["axis"] in ("N", "D")]
    drawn = growth.figure(Result("", rows=[], data={"points": points}))
    assert len(drawn.axes) == 4


def test_a_saved_result_can_be_drawn_again(tmp_path):
    result().save(tmp_path, "growth")
    again = Result(**json.loads((tmp_path / "growth.json").read_text()))
    save_figure(growth.figure(again), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "growth.svg").read_bytes()


@pytest.mark.slow
def test_run_measures_every_axis(tmp_path):
    quick = growth.run(quick=True)
    assert [(row["axis"], row["of"]) for row in quick.rows] == [
        (name, operation) for name, axis in AXES.items() for operation in axis.operations
    ]
    quick.save(tmp_path, "growth")
    assert {path.name for path in tmp_path.iterdir()} == {"growth.json", "growth.md", "growth.svg"}
