"""`select` gives the same numbers to the bit wherever its candidates are trained."""

import sys

import numpy as np
import pytest
import torch

import vaentropy as ve
from vaentropy.config import RunConfig
from vaentropy.data import Rows, pca
from vaentropy.engines import Processes, Ray
from vaentropy.errors import UsageError
from vaentropy.runs import select as select_by_settings
from vaentropy.selection import select
from vaentropy.world import World

X, _ = pca(200, 6, 2, noise=0.4, seed=1)
HOW = {"latent_dims": (1, 2), "epochs": 2, "progress": False}


def same(found, other) -> bool:
    weights = [[model.state_dict() for model in each.models.values()] for each in (found, other)]
    return found.to_dict() == other.to_dict() and all(
        torch.equal(ours[name], theirs[name]) for ours, theirs in zip(*weights, strict=True) for name in theirs
    )


def test_a_function_that_cannot_be_sent_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr("vaentropy.engines.processes.get_context", None)
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        select(X, model=lambda h: ve.vae1(6, h), engine=Processes(2), **HOW)


def test_an_engine_beside_a_group_of_processes_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules["vaentropy.selection.select"], "found", lambda: World(size=2))
    with pytest.raises(UsageError, match=r"engine given in a group of torch\.distributed"):
        select(X, engine=Processes(2), **HOW)


def test_a_closed_form_takes_no_engine():
    with pytest.raises(UsageError, match='engine given with model="linear"'):
        select(X, (1, 2), model="linear", engine=Processes(2))


@pytest.mark.slow
@pytest.mark.parametrize("data", [X, Rows(X, shard_size=60), ve.given(X, X[:, :1] > 0)])
def test_processes_give_the_numbers_of_one(data):
    assert same(select(data, engine=Processes(2), **HOW), select(data, **HOW))


@pytest.mark.slow
def test_ray_gives_them_too_and_takes_any_function():
    found = select(X, model=lambda h: ve.vae1(6, h), engine=Ray(workers=2), **HOW)
    assert same(found, select(X, model=lambda h: ve.vae1(6, h), **HOW))


@pytest.mark.slow
def test_settings_give_them_too_and_the_same_error(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    common = {"data": str(tmp_path / "x.npy"), "epochs": 2, "hidden": (4,)}
    assert same(*(select_by_settings(RunConfig(**common), (1, 2), engine=e) for e in (None, Processes(2))))
    errors = []
    for engine in (None, Processes(2)):
        with pytest.raises(ve.errors.TrainingError) as raised:
            select_by_settings(RunConfig(**common, learning_rate=1e20, max_rollbacks=0), (1, 2), engine=engine)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
