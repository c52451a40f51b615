"""Tables of SUSY's format: files as UCI has them, and the stand-in."""

import gzip

import numpy as np
import pytest
import torch

from vaentropy.data.scaling import Scaling
from vaentropy.errors import DataError, UsageError
from vaentropy.studies.study import Plan
from vaentropy.studies.susy_table import ANGLES, LOG_SCALE, OWN_NOISE, stand_in, susy_table

ROWS = 40


def write_susy(path, columns=19):
    """Labels 0 and 1 by turns, then features; returns the features (ROWS, 18)."""
    features = np.random.default_rng(0).gamma(2.0, 3.0, (ROWS, columns - 1))
    table = np.column_stack([np.arange(ROWS) % 2, features])
    text = "".join(",".join(f"{value:.18e}" for value in row) + "\n" for row in table)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return features


@pytest.mark.parametrize("name", ["SUSY.csv", "SUSY.csv.gz"])
def test_a_file_of_ucis_format_without_its_label(tmp_path, name):
    features = write_susy(tmp_path / name)
    title, data = susy_table(Plan(data=str(tmp_path / name)), rows=10)
    assert title == "SUSY" and data.data_shape == (18,) and len(data.train) == len(data.held_out) == ROWS // 2
    assert isinstance(data.scaling, Scaling)
    # Both halves together are the features of the file, so none of them is the label and no row is in both.
    both = data.scaling.undo(torch.cat([data.train, data.held_out])).numpy()
    order = np.argsort(both[:, 0])
    assert both[order] == pytest.approx(features[np.argsort(features[:, 0])], rel=1e-5)
    assert data.train.amin(0).tolist() == [0.0] * 18 and data.train.amax(0).tolist() == [1.0] * 18


def test_another_number_of_columns_is_one_line(tmp_path):
    write_susy(tmp_path / "HIGGS.csv", columns=18)
    with pytest.raises(DataError, match=r"has 18 columns, expected a class label and 18 features") as caught:
        susy_table(Plan(data=str(tmp_path / "HIGGS.csv")), rows=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.csv", "folder", "table.parquet"])
def test_what_is_no_such_file_is_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "table.parquet").write_bytes(b"PAR1\xff\x00" * 9)
    with pytest.raises((DataError, UsageError), match=name) as caught:
        susy_table(Plan(data=str(tmp_path / name)), rows=10)
    assert "\n" not in str(caught.value)


def test_the_stand_in_is_positive_skewed_and_correlated():
    x = stand_in(150_000, seed=0).double().numpy()
    assert x.shape == (150_000, 18) and (x > 0).all()
    # Of each, half the normal variable y = (unit combination of factors) + noise of its own.
    log_x = np.log(x[:, ANGLES:])
    assert log_x.mean(0) == pytest.approx(np.zeros(12), abs=0.01)
    assert log_x.std(0) == pytest.approx(np.full(12, LOG_SCALE * (1 + OWN_NOISE**2) ** 0.5), rel=0.02)
    skewness = (((x - x.mean(0)) / x.std(0)) ** 3).mean(0)[ANGLES:]
    growth = np.exp(LOG_SCALE**2 * (1 + OWN_NOISE**2))
    assert skewness == pytest.approx(np.full(12, (growth + 2) * (growth - 1) ** 0.5), rel=0.2)
    assert (x[:, :ANGLES] <= 2 * np.pi + 1e-6).all() and x[:, :ANGLES].max() > 6
    correlations = np.abs(np.corrcoef(x.T) - np.eye(18))
    assert correlations.max(0).min() > 0.2
    # No two pieces of it are the same draws.
    assert not np.isclose(x[:50_000], x[100_000:]).all(1).any()


def test_the_stand_in_depends_on_the_seed_alone():
    assert torch.equal(stand_in(100, seed=3), stand_in(100, seed=3))
    assert not torch.equal(stand_in(100, seed=3), stand_in(100, seed=4))
    title, data = susy_table(Plan(seed=3), rows=100)
    assert "stand-in" in title and len(data.train) == len(data.held_out) == 50
