"""Runs to report on, whose names would be markup if they were not text."""

import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import pytest

from vaentropy.cli import main
from vaentropy.config import RunConfig
from vaentropy.runs import report_run, train

NAMES = ("<script>alert(1)</script>", "$x_1^ & <b>", "\"quoted\" 'both'", "</script><img src=x>", "_plain")
SETTINGS: dict[str, Any] = {"hidden": (8,), "latent_dim": 3, "epochs": 12, "held_out": 0.2, "evaluate_every": 3}


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """A folder with a table of five features of such names."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 0.3 * rng.normal(size=(300, 5))
    header = ",".join('"' + name.replace('"', '""') + '"' for name in NAMES)
    rows = "\n".join(",".join(f"{value:.6f}" for value in row) for row in x)
    (folder / "table.csv").write_text(f"{header}\n{rows}\n")
    return folder


@pytest.fixture(scope="package")
def trained(folder):
    """A run as the command leaves it, and what it printed."""
    run, out, err = folder / "run <i>0's &", StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        options = [f"--{name.replace('_', '-')}={','.join(map(str, np.atleast_1d(v)))}" for name, v in SETTINGS.items()]
        assert main(["train", os.fspath(folder / "table.csv"), *options, "--out", os.fspath(run)]) == 0
    return run, out.getvalue(), err.getvalue()


@pytest.fixture(scope="package")
def run(trained):
    return trained[0]


@pytest.fixture(scope="package")
def page(run):
    """The report that the training left."""
    return run / "report.html"


@pytest.fixture(scope="package")
def runs(folder, run):
    """Three runs that differ in their seed alone."""
    others = []
    for seed in (1, 2):
        config = RunConfig(data=os.fspath(folder / "table.csv"), seed=seed, **SETTINGS)
        others.append(train(config, out=folder / f"run <i>{seed}'s &", progress=False).folder)
    return [run, *others]


@pytest.fixture(scope="package")
def comparison(folder, runs):
    """The report on all three."""
    return report_run(runs, out=folder / "all.html", progress=False)
