"""What a sweep trains: combinations that are checked beforehand, and names that any file system takes."""

import re

import pytest

from vaentropy.config import RunConfig
from vaentropy.errors import UsageError
from vaentropy.runs.combinations import combinations

CONFIG = RunConfig(data="pca", seed=3)


def names(vary, num_seeds=1, config=CONFIG):
    return [run.name for run in combinations(config, vary, num_seeds)]


def test_every_combination_from_every_seed_and_the_first_seed_first():
    runs = combinations(CONFIG, {"latent_dim": [2, 5], "beta": [2.0, 0.5]}, 2)
    assert [run.name for run in runs] == [
        *("latent_dim=2,beta=2.0,seed=3", "latent_dim=2,beta=0.5,seed=3"),
        *("latent_dim=5,beta=2.0,seed=3", "latent_dim=5,beta=0.5,seed=3"),
        *("latent_dim=2,beta=2.0,seed=4", "latent_dim=2,beta=0.5,seed=4"),
        *("latent_dim=5,beta=2.0,seed=4", "latent_dim=5,beta=0.5,seed=4"),
    ]
    last = runs[-1]
    assert (last.config.latent_dim, last.config.beta, last.config.seed) == (5, 0.5, 4)
    assert dict(last.varied) == {"latent_dim": 5, "beta": 0.5, "seed": 4}
    assert last.config.epochs == CONFIG.epochs


def test_values_are_taken_as_in_a_settings_file():
    runs = combinations(CONFIG, {"hidden": [[50, 20], (10,), 5], "learning_rate": ["1e-3"], "patience": [None]}, 1)
    assert [run.config.hidden for run in runs] == [(50, 20), (10,), (5,)]
    assert {run.config.learning_rate for run in runs} == {1e-3}
    assert [run.varied["hidden"] for run in runs] == [(50, 20), (10,), (5,)]
    assert runs[0].name == "hidden=50-20,learning_rate=0.001,patience=none,seed=3"


def test_no_name_leads_elsewhere_or_meets_another():
    paths = ["../up/mine.csv", "/etc/mine.csv", "MINE.csv", "a b;$(c)\n.csv", "..", "ü" * 90, "x" * 90]
    made = names({"data": paths, "dequantise": [True, False]})
    assert len({name.casefold() for name in made}) == 2 * len(paths)
    assert all(re.fullmatch(r"[A-Za-z0-9._+,=-]{1,255}", name) and name[0].isalpha() for name in made)
    assert made[0] == "data=mine.csv,dequantise=true,seed=3" and made[2] == "data=mine.csv,dequantise=true,seed=3-2"
    assert made == names({"data": paths, "dequantise": [True, False]})


def test_many_long_settings_have_a_name():
    vary = {
        "columns": [["a" * 60], ["a" * 60, "b"]],
        "exclude": [["c" * 60] * 9],
        "key": ["d" * 90],
        "hidden": [[9] * 99],
    }
    made = names(vary)
    assert len(set(made)) == 2 and all(len(name) <= 255 for name in made)


@pytest.mark.parametrize(
    ("vary", "num_seeds", "says"),
    [
        ({"latent_dimm": [2]}, 1, "unknown setting 'latent_dimm' to vary; did you mean 'latent_dim'"),
        ({"latent_dim": []}, 1, "expected a list of one or more values"),
        ({"model": "vae1"}, 1, "expected a list of one or more values"),
        ({"latent_dim": [2, 0]}, 1, "latent_dim=0,seed=3: latent_dim=0 given"),
        ({"latent_dim": [2], "epochs": ["many"]}, 1, "latent_dim=2,epochs='many',seed=3: setting epochs: 'many' given"),
        ({"model": ["vae1", "vae9"]}, 1, "model='vae9',seed=3: model='vae9' given, expected one of"),
        ({"learning_rate": [1e-3, "0.001"]}, 1, "learning_rate='0.001',seed=3 given twice"),
        ({"hidden": [[50], 50]}, 1, "given twice"),
        ({"seed": [0, 1]}, 2, "num_seeds=2 given with a varied seed"),
        ({}, 0, "num_seeds=0"),
        ({"latent_dim": range(1, 201)}, 51, "10,200 combinations given, expected at most 10,000"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(vary, num_seeds, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        combinations(CONFIG, vary, num_seeds)
