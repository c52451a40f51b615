"""Remedies for runs: without idle latents, trained further. (Calibration is in test_runs.py.)"""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from vaentropy import files
from vaentropy.cli import main
from vaentropy.errors import DataError, UsageError
from vaentropy.files import read_tensors
from vaentropy.runs import (
    RunConfig,
    RunFolder,
    continue_run,
    describe_run,
    encode_run,
    evaluate_run,
    load,
    prune_run,
    resume,
    train,
)

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
    further = continue_run(done.folder, out=tmp_path / "further", epochs=1, progress=False)
    assert further.model.latent_shape == (2,)
    with pytest.raises(UsageError, match="has no checkpoints"):
        resume(done.folder)


def test_prune_with_nothing_to_do_makes_nothing(run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["prune", str(run.folder), "--collapse", "0.000001", "--out", "copy"]) == 0
    assert capfd.readouterr().out == "no latent has collapsed: nothing to remove\n"
    assert list(tmp_path.iterdir()) == []
    assert main(["prune", str(run.folder), "--latents", "0,2", "--out", "copy", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["removed"] == [0, 2]


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


def test_an_initial_file_that_does_not_fit_is_told(run, tmp_path):
    further = continue_run(run.folder, out=tmp_path / "further", epochs=1, progress=False)
    folder = RunFolder(further.folder)
    files.write_tensors(folder.file("initial.safetensors"), {"weight": torch.zeros(1)})
    with pytest.raises(DataError, match=r"initial\.safetensors does not fit"):
        resume(further.folder, progress=False)


def test_the_verb_continue(run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["continue", str(run.folder), "--epochs", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["run"] == "runs/one-continued"
    assert main(["info", "runs/one-continued"]) == 0
    assert f"continued      from {run.folder}" in capfd.readouterr().out
    assert main(["continue", str(run.folder), "--hidden", "9"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
