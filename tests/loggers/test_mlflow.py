"""Runs of MLflow, read back from the database by MLflow's own client."""

import math
import sys

import pytest

from vaentropy.errors import MissingExtraError, UsageError
from vaentropy.loggers import MLflow, metrics

# MLflow takes seconds to import, and more to make its database.
pytestmark = pytest.mark.slow

LARGEST = sys.float_info.max  # MLflow keeps infinity as this


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def client(folder):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def curve(client, run_id, name):
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def test_a_run_in_the_database(folder, client, history, monkeypatch, tmp_path):
    """One test: the database takes seconds to make."""
    monkeypatch.chdir(tmp_path)
    settings = {"model": "vae1", "hidden": (8, 8), "long": "x" * 7000} | {f"setting_{n}": n for n in range(120)}
    with pytest.raises(KeyboardInterrupt), MLflow(folder, name="mine", settings=settings) as log:
        for row in history.rows[:4]:
            log({**row, "running_gap": math.nan, "running_kl": math.inf} if row["epoch"] == 1 else row)
        raise KeyboardInterrupt
    run = client.get_run(log.run_id)
    assert (run.info.run_name, run.info.status) == ("mine", "KILLED")
    assert run.data.params["hidden"] == "(8, 8)" and len(run.data.params) == 123
    assert client.get_experiment(run.info.experiment_id).name == "vaentropy"
    assert math.isnan(curve(client, log.run_id, "running/gap")[0][1])
    assert curve(client, log.run_id, "running/kl")[0] == (2, LARGEST)

    # It goes on from the third epoch, as from a checkpoint; rows that are there stay as they are.
    with MLflow(folder, run_id=log.run_id, settings={"model": "other"}) as log:
        for row in history.rows[2:]:
            log(row)
        log.summary(history)
    run = client.get_run(log.run_id)
    assert run.info.status == "FINISHED" and run.data.params["model"] == "vae1"
    expected = {}
    for row in history.rows:
        for name, value in metrics(row).items():
            expected.setdefault(name, []).append((row["step"], pytest.approx(value, rel=1e-12)))
    del expected["running/gap"], expected["running/kl"]
    assert {name: curve(client, log.run_id, name) for name in expected} == expected
    assert run.data.metrics["held_out/kl"] == pytest.approx(history.held_out.kl, rel=1e-12)

    # A second run of the same experiment; a run that there is not.
    with pytest.raises(ValueError, match="mine"), MLflow(folder) as other:
        raise ValueError("mine")
    assert client.get_run(other.run_id).info.status == "FAILED" and other.run_id != log.run_id
    with (
        pytest.raises(UsageError, match=r"MLflow cannot write to sqlite.*no-such-run"),
        MLflow(folder, run_id="no-such-run"),
    ):
        pass

    # The environment goes before the folder.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    with MLflow(tmp_path / "ours") as log:
        log(history.rows[0])
    experiment = client.get_experiment_by_name("theirs")
    assert [run.info.run_id for run in client.search_runs([experiment.experiment_id])] == [log.run_id]
    assert list(tmp_path.iterdir()) == [], "something is left in the working directory"


def test_where_nothing_can_be_written_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://example.invalid")
    with pytest.raises(UsageError, match="MLflow cannot write to ftp") as error, MLflow(tmp_path):
        pass
    assert str(error.value).isprintable()


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy", "alembic"])
def test_without_the_libraries_it_says_how_to_get_them(monkeypatch, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    message = rf"{missing} is not installed; run: pip install 'vaentropy\[logging\]'"
    with pytest.raises(MissingExtraError, match=message):
        MLflow(tmp_path)
