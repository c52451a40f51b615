"""Runs to report on, whose names would be markup if they were not text."""

import numpy as np
import pytest

from vaentropy.config import RunConfig
from vaentropy.runs import report_run, train

NAMES = ("<script>alert(1)</script>", "$x_1^ & <b>", "\"quoted\" 'both'", "</script><img src=x>", "_plain")
SETTINGS = {"hidden": (8,), "latent_dim": 3, "epochs": 12, "batch_size": 50, "held_out": 0.2, "evaluate_every": 3}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a table of 5 features with such names, and three runs on it in folders with such names."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(300, 5))
    header = ",".join('"' + name.replace('"', '""') + '"' for name in NAMES)
    rows = "\n".join(",".join(f"{value:.6f}" for value in row) for row in x)
    (folder / "table.csv").write_text(f"{header}\n{rows}\n")
    for seed in range(3):
        config = RunConfig(data=str(folder / "table.csv"), seed=seed, **SETTINGS)
        train(config, out=folder / f"run <i>{seed}'s &", progress=False)
    return folder


@pytest.fixture(scope="session")
def runs(folder):
    return [folder / f"run <i>{seed}'s &" for seed in range(3)]


@pytest.fixture(scope="session")
def page(runs):
    """The report on one run."""
    return report_run(runs[0], progress=False)


@pytest.fixture(scope="session")
def comparison(folder, runs):
    """The report on three runs that differ in their seed."""
    return report_run(runs, out=folder / "all.html", progress=False)
