"""Cells and tables of a report, without a page."""

import math
from dataclasses import replace

import pytest
import torch

import vaentropy as ve
from vaentropy.report import Subject, render, tables
from vaentropy.training import History


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    model = ve.vae1(3, 2, (4,))
    diagnosis = ve.diagnose(model, x[:40], held_out=x[40:], gradients=False, progress=False)
    settings = {"seed": 0, "epochs": 3, "hidden": [4]}
    return Subject(
        name="one",
        description="",
        diagnosis=diagnosis,
        history=History([]),
        view=None,
        settings=settings,
        environment={},
    )


@pytest.mark.parametrize(
    ("value", "text", "key"),
    [
        (1234567, "1,234,567", 1234567),
        (0.12345678, "0.1235", 0.12345678),
        (-0.0, "0.0000", 0.0),
        (1.5e-7, "1.500e-07", 1.5e-7),
        (-2.5e9, "-2.500e+09", -2.5e9),
        (math.nan, "–", None),
        (math.inf, "+∞", math.inf),
        (-math.inf, "-∞", -math.inf),
        (None, "–", None),
        (True, "true", None),
        ("<b>", "<b>", None),
    ],
)
def test_cells(value, text, key):
    assert tables.as_cell(value) == (text, key)


def test_columns_of_text_are_told_from_numbers_that_are_missing():
    rows = [[tables.as_cell(value) for value in row] for row in ((1, "a", math.nan), (math.inf, "b", None))]
    assert tables.Table("name", "", ("number", "text", "nothing"), rows).texts == (1,)


def test_runs_differ_in_what_they_do_not_share(subject):
    other = replace(subject, name="two", settings={"seed": 1, "epochs": 3, "hidden": [4], "beta": 2.0})
    assert tables.differing([subject, subject]) == ()
    assert tables.settings_compared([subject, subject]) is None
    assert tables.differing([subject, other]) == ("seed", "beta")
    found = tables.settings_compared([subject, other])
    assert [[cell.text for cell in row] for row in found.rows] == [["one", "0", "–"], ["two", "1", "2.0000"]]


def test_results_are_those_of_the_evaluations(subject):
    found = tables.compared([subject, replace(subject, diagnosis=replace(subject.diagnosis, held_out=None))])
    first, second = (dict(zip(found.columns, row, strict=True)) for row in found.rows)
    assert first["ELBO"].key == second["ELBO"].key == subject.diagnosis.train.elbo
    assert first["held-out ELBO"].key == subject.diagnosis.held_out.elbo and second["held-out ELBO"].text == "–"
    assert first["problems"].key == len(subject.diagnosis.problems)


def test_a_history_is_thinned_and_keeps_its_last_row(subject):
    row = {"running_elbo": -1.0, "running_entropy_sum": -1.0, "running_gap": 0.0, "running_kl": 0.0}
    rows = [{"epoch": epoch, "step": epoch, **row} for epoch in range(1, 10_001)]
    found = tables.history(replace(subject, history=History(rows)))
    assert len(found.rows) == tables.MOST_ROWS and found.rows[-1][0].key == 10_000
    assert tables.history(subject) is None


def test_features_with_the_largest_residuals_are_shown(subject):
    residuals = torch.linspace(-1, 0.5, 784, dtype=torch.float64)
    nothing = replace(subject.train.gains, feature_variance=None)
    many = {"decoder_residuals": residuals, "optimal_feature_variance": None, "gains": nothing}
    train = replace(subject.diagnosis.train, **many)
    found = tables.features(replace(subject, diagnosis=replace(subject.diagnosis, train=train)))
    assert len(found.rows) == tables.MOST_FEATURES and found.rows[0][:2] == [("0", 0), ("-1.0000", -1.0)]


@pytest.mark.parametrize(("other", "alike"), [("vae3 trained on a (in [0, 1])", True), ("vae1 trained on a", False)])
def test_runs_on_other_data_are_not_compared_without_a_word(subject, monkeypatch, other, alike):
    monkeypatch.setattr("vaentropy.report.pictures.of_runs", lambda *given, **how: [])
    monkeypatch.setattr("vaentropy.report.pictures.of_subject", lambda *given, **how: {})
    one = replace(subject, description="vae1 trained on a (in [0, 1])", name="one")
    page = render([one, replace(subject, description=other, name="two")])
    assert ("their ELBOs do not compare" in page) != alike
