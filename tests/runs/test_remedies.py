"""Remedies for runs: without idle latents, trained further. (Calibration is in test_runs.py.)"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from vaentropy import files
from vaentropy.cli import main
from vaentropy.errors import DataError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.expectation import GaussHermite, MonteCarlo
from vaentropy.files import read_tensors
from vaentropy.runs import (
    RunConfig,
    RunFolder,
    calibrate_run,
    continue_run,
    describe_run,
    encode_run,
    evaluate_run,
    load,
    prune_run,
    resume,
    sample_run,
    train,
)
from vaentropy.runs.build import build_model

CONFIG = RunConfig(data="pca", held_out=0.9, model="vae1", latent_dim=3, hidden=(8, 6), epochs=3, seed=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, out=tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    return train(replace(CONFIG, model="vae0"), out=tmp_path_factory.mktemp("runs") / "fixed", progress=False)


def weights(folder):
    return read_tensors(folder / "model.safetensors")[0]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def idle(run, tmp_path):
    """The run, with a latent 1 that the encoder leaves at the prior and the decoder at a constant."""
    folder = shutil.copytree(run.folder, tmp_path / "idle")
    model = load(folder)
    with torch.no_grad():
        model.latent_mean.weight[1], model.latent_mean.bias[1] = 0, 0
        model.latent_log_variance.weight[1], model.latent_log_variance.bias[1] = 0, 0
        model.latent_layer.weight[:, 1] = 0
    files.write_tensors(folder / "model.safetensors", model.state_dict())
    return folder


def test_prune_removes_what_has_collapsed(idle, tmp_path):
    done = prune_run(idle, out=tmp_path / "pruned")
    assert done.removed == [1] and done.folder == tmp_path / "pruned"
    assert done.after.elbo == pytest.approx(done.before.elbo, abs=5 * done.before.mc_stderr.elbo)
    assert done.after.kl == pytest.approx(done.before.kl, abs=1e-6)
    assert load(done.folder).latent_shape == (2,)
    assert evaluate_run(done.folder)["train"].elbo == pytest.approx(done.after.elbo)
    assert encode_run(done.folder, tmp_path / "z.npy") > 0
    assert describe_run(done.folder)["made_from"] == {"pruned_from": str(idle)}
    assert describe_run(done.folder)["manifest"]["num_parameters"] == sum(
        p.numel() for p in load(done.folder).parameters()
    )
    further = continue_run(done.folder, out=tmp_path / "further", epochs=1, progress=False)
    assert further.model.latent_shape == (2,)
    assert sample_run(done.folder, tmp_path / "x.npy", 5) == 5
    calibrated, old, new = calibrate_run(done.folder, out=tmp_path / "calibrated")
    assert load(calibrated).latent_shape == (2,) and new.elbo > old.elbo - 5 * old.mc_stderr.elbo
    with pytest.raises(UsageError, match=r"has no checkpoints.*; train it further with: vaentropy continue "):
        resume(done.folder)


@pytest.mark.slow
def test_the_change_by_pruning_has_the_error_that_draws_show(run, tmp_path):
    changes = []
    for seed in range(60):
        draws = MonteCarlo(2, seed)
        done = prune_run(run.folder, latents=[2], out=tmp_path / "copy", overwrite=True, expectation=draws)
        changes.append(done.change)
    # 60 changes tell their spread to 9 %; the error of one of the two ELBOs alone would be about 0.7 of it.
    assert done.change_error == pytest.approx(np.std(changes, ddof=1), rel=0.22)
    assert done.change == done.after.elbo - done.before.elbo
    single = prune_run(run.folder, latents=[2], out=tmp_path / "copy", overwrite=True, expectation=MonteCarlo(1))
    assert single.change_error is None


def test_prune_with_nothing_to_do_makes_nothing(run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", str(run.folder), "--collapse", "0.000001", "--out", "copy"]) == 0
    assert capfd.readouterr().out == "no latent has collapsed: nothing to remove\n"
    assert list(tmp_path.iterdir()) == []
    assert main(["prune", str(run.folder), "--latents", "0,2", "--out", "copy", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["removed"] == [0, 2] and result["change_error"] > 0
    assert result["change"] == pytest.approx(result["after"]["elbo"] - result["before"]["elbo"])


def test_the_verb_prune_says_what_it_cost(idle, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", str(idle)]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("removed latents 1, 2 are left\nELBO ") and " ± " in out and out.count("\n") == 2
    assert err == "\nRun in runs/idle-pruned\n"
    assert main(["prune", str(idle), "--overwrite", "--out", "runs/idle-pruned", "--num-samples", "1"]) == 0
    assert " ± " not in capfd.readouterr().out


def test_prune_refuses(run, tmp_path):
    for options, word in (
        ({"latents": [3]}, "from 0 to 2"),
        ({"latents": [0, 1, 2]}, "at least one to be left"),
        ({"collapse": 100.0}, "all latents of .* have collapsed"),
    ):
        with pytest.raises(UsageError, match=word):
            prune_run(run.folder, out=tmp_path / "copy", **options)
    with pytest.raises(UsageError, match="another one than that of the run itself"):
        prune_run(run.folder, out=run.folder, overwrite=True)
    assert not (tmp_path / "copy").exists()


def test_continue_begins_where_the_other_ended(run, tmp_path):
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    further = continue_run(run.folder, out=tmp_path / "further", epochs=2, learning_rate=1e-3, progress=False)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
    assert equal(read_tensors(further.folder / "initial.safetensors")[0], weights(run.folder))
    assert (further.config.epochs, further.config.learning_rate) == (2, 1e-3)
    assert further.history.train.elbo > run.history.train.elbo
    assert describe_run(further.folder)["made_from"] == {"continued_from": str(run.folder)}
    # What it leaves is a run like any other, and a third can begin from it.
    assert evaluate_run(further.folder)["train"].elbo == pytest.approx(further.history.train.elbo)
    assert continue_run(further.folder, out=tmp_path / "third", epochs=1, progress=False).config.epochs == 1


@pytest.mark.parametrize("left", [["config.yaml", "initial.safetensors"], ["checkpoints", "history.jsonl"]])
def test_a_continued_run_that_was_killed_goes_on_to_the_same_end(run, tmp_path, left):
    whole = continue_run(run.folder, out=tmp_path / "whole", epochs=2, progress=False, checkpoint_every=3)
    end = weights(whole.folder)
    # As a kill leaves it right after the settings were written, or between a checkpoint and the end.
    for path in whole.folder.iterdir():
        if path.name not in [*left, "config.yaml", "initial.safetensors", "manifest.json"] or (
            path.name == "manifest.json" and "checkpoints" not in left
        ):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    newest = sorted((whole.folder / "checkpoints").glob("step-*")) if "checkpoints" in left else []
    for path in newest[1:]:
        path.unlink()
    again = resume(whole.folder, progress=False)
    assert equal(weights(again.folder), end)
    assert describe_run(again.folder)["made_from"] == {"continued_from": str(run.folder)}


def test_a_fixed_variance_becomes_a_learned_one(fixed, tmp_path):
    further = continue_run(fixed.folder, out=tmp_path / "further", model="vae1", epochs=1, progress=False)
    initial = read_tensors(further.folder / "initial.safetensors")[0]
    optimum = evaluate_run(fixed.folder)["train"].optimal_variance
    assert float(initial["head.log_variance"].exp()) == pytest.approx(optimum, rel=1e-5)
    assert further.history.train.elbo > fixed.history.train.elbo + fixed.history.train.gains.variance
    assert continue_run(fixed.folder, out=tmp_path / "same", epochs=1, progress=False).config.model == "vae0"


def test_learned_prior_variances_go_into_the_networks(tmp_path):
    run = train(replace(CONFIG, model="vae2", dtype="float64"), out=tmp_path / "run", progress=False)
    further = continue_run(run.folder, out=tmp_path / "further", model="vae1", epochs=1, progress=False)
    initial = build_model(further.config, (10,))
    initial.load_state_dict(read_tensors(further.folder / "initial.safetensors")[0])
    before, after = (evaluate(model, run.data.train, expectation=GaussHermite(3)) for model in (run.model, initial))
    assert after.elbo == pytest.approx(before.elbo, rel=1e-10)
    with pytest.raises(UsageError, match="expected vae1: its weights fit no other"):
        continue_run(further.folder, model="vae2")


def test_data_that_have_moved_are_known_to_the_new_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    train(RunConfig(data="x.npy", epochs=1, hidden=(4,)), out="run", progress=False)
    (tmp_path / "x.npy").rename(tmp_path / "there" / "x.npy")
    with pytest.raises(DataError, match=r"x\.npy: no such file"):
        continue_run("run", out="further", epochs=1, progress=False)
    continue_run("run", data_folder="there", out="further", epochs=1, progress=False)
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "further")["train"].num_points == 54
    assert resume(tmp_path / "further", progress=False).config.data == str(tmp_path / "there" / "x.npy")


def test_runs_on_data_with_missing_values_have_remedies_too(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    np.save(tmp_path / "x.npy", x)
    config = RunConfig(data=str(tmp_path / "x.npy"), missing="ignore", model="vae0", stream=True, epochs=2, hidden=(8,))
    run = train(config, out=tmp_path / "run", progress=False)
    further = continue_run(run.folder, model="vae1", epochs=1, out=tmp_path / "further", progress=False)
    assert further.history.train.elbo > run.history.train.elbo
    assert prune_run(further.folder, latents=[0], out=tmp_path / "pruned").after.latent_shape == (1,)


def test_continue_refuses_what_does_not_fit(run, tmp_path):
    for settings, word in (
        ({"latent_dim": 5}, "latent_dim=5 given, but a run goes on with its own data and networks"),
        ({"model": "vae2"}, "expected vae1"),
        ({"epoch": 5}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs=0"),
    ):
        with pytest.raises(UsageError, match=word):
            continue_run(run.folder, out=tmp_path / "further", **settings)
    with pytest.raises(UsageError, match="another one than that of the run itself"):
        continue_run(run.folder, out=run.folder, overwrite=True)
    with pytest.raises(DataError, match="is no run"):
        continue_run(tmp_path)
    assert not (tmp_path / "further").exists()


def test_weights_to_begin_with_that_are_gone_are_missed(run, tmp_path):
    further = continue_run(run.folder, out=tmp_path / "further", epochs=1, progress=False)
    (further.folder / "initial.safetensors").unlink()
    # With a checkpoint they are not needed.
    assert equal(resume(further.folder, progress=False).model.state_dict(), further.model.state_dict())
    assert describe_run(further.folder)["made_from"] == {"continued_from": str(run.folder)}
    shutil.rmtree(further.folder / "checkpoints")
    (further.folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"has no initial\.safetensors, the weights that its training began with"):
        resume(further.folder, progress=False)


def test_an_initial_file_that_does_not_fit_is_told(run, tmp_path):
    further = continue_run(run.folder, out=tmp_path / "further", epochs=1, progress=False)
    folder = RunFolder(further.folder)
    files.write_tensors(folder.file("initial.safetensors"), {"weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"initial\.safetensors cannot be loaded"):
        resume(further.folder, progress=False)


def test_the_verb_continue(run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["continue", str(run.folder), "--epochs", "1", "--json", "--no-report"]) == 0
    assert json.loads(capfd.readouterr().out)["run"] == "runs/one-continued"
    assert main(["info", "runs/one-continued"]) == 0
    assert f"continued      from {run.folder}" in capfd.readouterr().out
    assert main(["continue", str(run.folder), "--hidden", "9"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
