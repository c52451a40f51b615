"""Live logs in the folder of a run: where they are, how they go on, and what happens to them with the run."""

import importlib
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vaentropy.cli import main
from vaentropy.errors import MissingExtraError, TrainingError
from vaentropy.runs import RunConfig, RunFolder, continue_run, describe_run, evaluate_run, resume, train
from vaentropy.training import loop

from ..loggers.wandb_files import of, read, rows

STEPS = 10  # of an epoch


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Four epochs of ten steps."""
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(440, 3)))
    return RunConfig(
        data=str(path), held_out=1 / 11, model="vae2", latent_dim=2, hidden=(8, 6), epochs=4, batch_size=40, seed=4
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """None of the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # Its files are named by the second and a number, and read in the order of their names, in which 10 is before 9.
    event_files = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(event_files, "_global_uid", event_files.AtomicCounter(0))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def curve(folder, name="running/elbo"):
    events = EventAccumulator(str(folder / "logs" / "tensorboard"))
    events.Reload()
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)]


def of_history(run, name="running_elbo"):
    return list(zip(run.history["step"], run.history[name], strict=True))


def cut_after(monkeypatch, steps):
    """Let training end after so many steps as if it had been killed."""
    real, done = loop.training_step, 0

    def step(*args, **options):
        nonlocal done
        done += 1
        if done > steps:
            raise MemoryError("killed")
        return real(*args, **options)

    monkeypatch.setattr(loop, "training_step", step)


def test_a_run_is_logged_into_its_folder_and_is_a_run_like_any_other(config, tmp_path, capfd):
    run = train(config, out=tmp_path / "run", log=["tensorboard", "console"])
    assert of_history(run) == curve(run.folder)
    assert curve(run.folder, "train/kl") == [(run.history["step"][-1], pytest.approx(run.history.train.kl, rel=1e-6))]
    assert sorted(path.name for path in (run.folder / "logs").iterdir()) == ["tensorboard"]
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "1", "2", "3", "4", "after"]
    assert describe_run(run.folder)["status"] == "finished"
    assert evaluate_run(run.folder)["train"].elbo == run.history.train.elbo
    # The run that goes on from it begins logs of its own.
    further = continue_run(run.folder, out=tmp_path / "further", log=["tensorboard"], epochs=1)
    assert of_history(further) == curve(further.folder)


def test_nothing_is_logged_unless_asked(config, tmp_path, capfd):
    run = train(replace(config, epochs=1), out=tmp_path / "run")
    assert not (run.folder / "logs").exists() and capfd.readouterr().err == ""


def test_a_resumed_run_has_every_step_once(config, tmp_path, monkeypatch):
    # A checkpoint within the third epoch: its row is written, and made once more.
    config = replace(config, checkpoint_every=25)
    with monkeypatch.context() as patch:
        cut_after(patch, 3 * STEPS + 5)
        with pytest.raises(MemoryError):
            train(config, out=tmp_path / "run", log=["tensorboard", "wandb"])
    steps = [step for step, _ in curve(tmp_path / "run")]
    ids = json.loads((tmp_path / "run" / "logs" / "runs.json").read_text())
    run = resume(tmp_path / "run", log=["wandb", "tensorboard"])
    assert steps == [STEPS, 2 * STEPS, 3 * STEPS] == run.history["step"][:3]
    assert of_history(run) == curve(run.folder)
    # W&B's files are two, of one run.
    assert json.loads((run.folder / "logs" / "runs.json").read_text()) == ids
    first, second = read(run.folder / "logs")
    assert {about.run_id for records in (first, second) for about in of(records, "run")} == {ids["wandb"]}
    assert [list(rows(records)) for records in (first, second)] == [steps, [4 * STEPS]]
    # What is finished has nothing to add.
    before = curve(run.folder, "train/kl")
    resume(run.folder, log=["tensorboard"])
    assert curve(run.folder, "train/kl") == before and of_history(run) == curve(run.folder)


def test_logs_go_with_the_run_that_is_overwritten(config, tmp_path, monkeypatch):
    folder = train(config, out=tmp_path / "run", log=["tensorboard"]).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    # In vain: they come back.
    with monkeypatch.context() as patch:
        cut_after(patch, 0)
        with pytest.raises(MemoryError):
            train(config, out=folder, overwrite=True, log=["tensorboard"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    again = train(replace(config, seed=1), out=folder, overwrite=True, log=["tensorboard"])
    assert len(list((folder / "logs" / "tensorboard").iterdir())) == 1 and of_history(again) == curve(folder)


def test_a_folder_of_logs_that_holds_something_else_stays(config, tmp_path):
    folder = train(replace(config, epochs=1), out=tmp_path / "run").folder
    (folder / "logs").mkdir()
    (folder / "logs" / "slurm.out").write_text("mine")
    train(replace(config, epochs=1), out=folder, overwrite=True, log=["tensorboard"])
    assert (folder / "logs" / "slurm.out").read_text() == "mine"
    assert "logs" not in RunFolder(folder).own() and RunFolder(folder).own()[-1] == "config.yaml"


def test_a_run_that_fails_before_its_first_epoch_leaves_no_logs(config, tmp_path):
    config = replace(config, learning_rate=1e9, schedule="constant", epochs=30)
    with pytest.raises(TrainingError):
        train(config, out=tmp_path / "run", log=["tensorboard"])
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_said_before_anything_is_done(config, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match="mlflow is not installed"):
        train(config, out=tmp_path / "run", log=["console", "mlflow"])
    assert main(["train", config.data, "--out", str(tmp_path / "run"), "--log", "mlflow"]) == 2
    assert capfd.readouterr().err == "vaentropy: mlflow is not installed; run: pip install 'vaentropy[logging]'\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_logs_and_resumes(config, tmp_path, capfd):
    where = str(tmp_path / "run")
    options = ["--epochs", "2", "--hidden", "8", "--held-out", "0.2", "--json", "--log", "console,tensorboard"]
    assert main(["train", config.data, "--out", where, *options]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["run"] == where and err.splitlines()[0].split()[:2] == ["epoch", "step"]
    assert main(["train", "--resume", where, "--log", "console", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["run"] == where and err == "", "there were no new rows to tell of"
    assert main(["continue", where, "--out", str(tmp_path / "b"), "--epochs", "1", "--json", "--log", "console"]) == 0
    assert "after epoch 1: ELBO" in capfd.readouterr().err


@pytest.mark.slow
def test_mlflow_keeps_its_database_in_the_folder_and_the_run_goes_on(config, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    config = replace(config, checkpoint_every=25)
    with monkeypatch.context() as patch:
        cut_after(patch, 3 * STEPS + 5)
        with pytest.raises(MemoryError):
            train(config, out=tmp_path / "run", log=["mlflow"])
    run = resume(tmp_path / "run", log=["mlflow"])
    client = MlflowClient(f"sqlite:///{run.folder}/logs/mlflow.db")
    (logged,) = client.search_runs([client.get_experiment_by_name("vaentropy").experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    assert logged.data.params["latent_dim"] == "2"
    found = [(metric.step, metric.value) for metric in client.get_metric_history(logged.info.run_id, "running/elbo")]
    assert found == [(step, pytest.approx(elbo)) for step, elbo in of_history(run)]
