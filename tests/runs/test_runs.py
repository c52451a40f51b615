"""Run folders: what they hold, that they give the model back, and what happens to spoiled ones."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from vaentropy.errors import DataError, TrainingError, UsageError
from vaentropy.evaluation import evaluate
from vaentropy.files import to_json
from vaentropy.importance import log_likelihood
from vaentropy.runs import (
    RunConfig,
    RunFolder,
    calibrate_run,
    describe_run,
    encode_run,
    evaluate_run,
    load,
    log_likelihood_run,
    reconstruct_run,
    resume,
    room,
    sample_run,
    select,
    train,
)
from vaentropy.runs.build import build_model, load_own
from vaentropy.training import Checkpoints, fit

CONFIG = RunConfig(data="pca", held_out=0.98, model="vae2", latent_dim=3, hidden=(8, 6), epochs=3, seed=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, out=tmp_path_factory.mktemp("runs") / "one")


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy_of_run(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "copy")


def test_a_run_leaves_its_files_and_nothing_half_written(run):
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    whole = {"config.yaml", "manifest.json", "history.jsonl", "evaluation.json", "model.safetensors"}
    steps = 0, int(run.history["step"][-1])
    states = {f"checkpoints/step-{step:09d}.safetensors" for step in steps}
    states |= {f"checkpoints/{Checkpoints(run.folder).best_path().name}"}
    assert names == whole | states | {"scaling.safetensors", ".lock"}


def test_the_config_repeats_the_run(run, tmp_path):
    assert RunFolder(run.folder).config() == CONFIG
    again = train(RunFolder(run.folder).config(), out=tmp_path / "again")
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_the_weight_of_the_kl_rises(tmp_path):
    config = replace(CONFIG, warmup=0.6, beta=2.0, epochs=11)
    history = train(config, out=tmp_path / "run").history
    steps = np.asarray(history["step"]) - 1  # a row has that of its last step
    assert history["beta"] == pytest.approx(2.0 * np.minimum(1.0, steps / steps[-1] / 0.6))
    assert 0 < history["beta"][0] < 0.5 and history["beta"][-1] == 2.0
    assert RunFolder(tmp_path / "run").config() == config


def test_load_gives_the_model_back(run):
    model = load(run.folder)
    assert not model.training
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_evaluate_run_repeats_the_evaluation_of_training(run):
    parts = evaluate_run(run.folder)
    assert parts["train"].elbo == run.history.train.elbo
    assert parts["held_out"].elbo == run.history.held_out.elbo
    stored = json.loads((run.folder / "evaluation.json").read_text())
    assert stored["train"]["elbo"] == parts["train"].elbo


def test_log_likelihood_run_is_that_of_the_model_on_the_data_it_had(run):
    seen, own = [], load_own(run.config)
    parts = log_likelihood_run(run.folder, num_samples=5, seed=2, on_batch=seen.append)
    jacobian = RunFolder(run.folder).scaling().log_jacobian
    for name, x in (("train", own.train), ("held_out", own.held_out)):
        expected = log_likelihood(run.model, x, num_samples=5, seed=2, log_jacobian=jacobian)
        assert parts[name].value == expected.value and parts[name].data_value == expected.data_value
        assert parts[name].num_points == len(x)
    assert sum(seen) == len(own.train) + len(own.held_out)
    # The ELBO of the same data, by other draws of z.
    elbo = run.history.train.elbo
    assert parts["train"].elbo == pytest.approx(elbo, abs=6 * parts["train"].moments["elbo"].mc_stderr.item())
    other = log_likelihood_run(run.folder, num_samples=1, data="pca-ring")
    assert set(other) == {"data"} and other["data"].num_points == 20_000
    with pytest.raises(UsageError, match="num_samples=0"):
        log_likelihood_run(run.folder, num_samples=0)


def test_other_data_are_one_part(run):
    parts = evaluate_run(run.folder, data="pca-ring")
    assert set(parts) == {"data"} and parts["data"].num_points == 20_000


def test_history_and_manifest(run):
    rows = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 2 and manifest["status"] == "finished"
    assert manifest["data"]["data_shape"] == [10]
    assert len(manifest["data"]["sha256_train"]) == 64


def test_a_folder_in_use_is_not_touched(run):
    before = contents(run.folder)
    with pytest.raises(UsageError, match=r"holds a run; go on with it by --resume .*, replace it with --overwrite"):
        train(CONFIG, out=run.folder)
    assert contents(run.folder) == before


def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(tmp_path):
    diverging = replace(CONFIG, epochs=30, learning_rate=1e9, schedule="constant", variances="learned")
    with pytest.raises(TrainingError):
        train(diverging, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_runs_without_a_name_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(train(replace(CONFIG, epochs=1)).folder) for _ in range(2)]
    assert folders == ["runs/pca-vae2", "runs/pca-vae2-2"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError):
            train(CONFIG, out=out)
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "epochs: [", "is not valid YAML"),
        ("config.yaml", "- 1", "holds list, expected settings with names"),
        ("config.yaml", "epoch: 3", "unknown setting 'epoch'; did you mean 'epochs'?"),
        ("config.yaml", "epochs: 1\nepochs: 2", "names 'epochs' twice"),
        ("config.yaml", "epochs: many", "setting epochs: 'many' given"),
        ("config.yaml", "hidden: [a]", "setting hidden"),
        ("config.yaml", "model: vae7", "model='vae7' given, expected one of vae0, vae1, vae2, vae3"),
        ("config.yaml", "!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("model.safetensors", "nonsense", "cannot be loaded"),
        ("manifest.json", "{", "manifest.json is not"),
        ("manifest.json", '{"data": {}}', "manifest.json is not"),
    ],
)
def test_spoiled_files_are_named(copy_of_run, name, content, message):
    (copy_of_run / name).write_text(content)
    with pytest.raises((DataError, UsageError)) as error:
        load(copy_of_run)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "manifest.json"])
def test_missing_files_are_named(copy_of_run, name):
    (copy_of_run / name).unlink()
    with pytest.raises(DataError, match=f"is no (finished )?run: it has no {name}"):
        load(copy_of_run)


def test_weights_of_another_model_are_refused(copy_of_run):
    settings = {**yaml.safe_load((copy_of_run / "config.yaml").read_text()), "latent_dim": 4}
    (copy_of_run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(DataError, match=r"model\.safetensors cannot be loaded"):
        load(copy_of_run)


def test_data_of_another_shape_are_refused(run):
    with pytest.raises(DataError, match=r"data points of shape \(64,\) given, expected \(10,\)"):
        evaluate_run(run.folder, data="digits")


@pytest.mark.parametrize(
    "settings",
    [{"model": "vae9"}, {"dtype": "float16"}, {"num_samples": 0}, {"threads": 0}, {"device": "gpu9"}, {"hidden": (0,)}],
)
def test_wrong_settings_are_refused_before_a_folder_is_made(settings, tmp_path):
    with pytest.raises(UsageError):
        train(RunConfig(**{**asdict(CONFIG), **settings}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_json_has_no_nan():
    assert json.loads(to_json({"a": float("nan"), "b": [1.0, float("-inf")]})) == {"a": None, "b": [1.0, None]}


def test_data_that_changed_since_training_are_noticed(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.random.default_rng(0).normal(size=(60, 3)))
    run = train(replace(CONFIG, data=str(path), held_out=0.2), out=tmp_path / "run")
    assert set(evaluate_run(run.folder)) == {"train", "held_out"}
    np.save(path, np.random.default_rng(1).normal(size=(60, 3)))
    with pytest.raises(DataError, match=r"the data have changed since .* was trained on them"):
        evaluate_run(run.folder)
    assert set(evaluate_run(run.folder, data=str(path))) == {"data"}


# --- resuming, overwriting, the lock


def test_an_interrupted_run_is_resumed_to_the_same_end(run, tmp_path, monkeypatch):
    from vaentropy.training import loop

    class Cut(Exception):
        pass

    real, done = loop.training_step, 0

    def step(*args, **options):
        nonlocal done
        done += 1
        if done == 5:
            raise Cut
        return real(*args, **options)

    config = replace(CONFIG, checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        with pytest.raises(Cut):
            train(config, out=tmp_path / "run")
    assert describe_run(tmp_path / "run")["status"] == "interrupted"
    with RunFolder(tmp_path / "run").locked():
        assert describe_run(tmp_path / "run")["status"] == "running"
    with pytest.raises(DataError, match=r"is no finished run: it has no model\.safetensors"):
        load(tmp_path / "run")
    again = resume(tmp_path / "run")
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    about = describe_run(tmp_path / "run")
    assert about["status"] == "finished" and about["epochs"] == "3 of 3"
    # Resuming what is finished changes nothing.
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert resume(tmp_path / "run").history.train.elbo == again.history.train.elbo
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path, monkeypatch):
    from vaentropy.training import loop

    real, done = loop.training_step, 0

    def step(model, *args, **options):
        nonlocal done
        terms = real(model, *args, **options)
        done += 1
        if done > 4:
            with torch.no_grad():
                model.latent_mean.weight.fill_(float("nan"))
        return terms

    monkeypatch.setattr(loop, "training_step", step)
    with pytest.raises(TrainingError):
        train(replace(CONFIG, checkpoint_every=2, batch_size=100), out=tmp_path / "run")
    about = describe_run(tmp_path / "run")
    assert about["status"].startswith("failed: the ELBO became") and about["checkpoints"] == [4, 2]


def test_only_a_run_is_overwritten_and_only_its_files_go(copy_of_run, tmp_path):
    (copy_of_run / "notes.txt").write_text("mine")
    again = train(replace(CONFIG, epochs=1), out=copy_of_run, overwrite=True)
    assert (copy_of_run / "notes.txt").read_text() == "mine" and len(again.history) == 1
    assert RunFolder(copy_of_run).config().epochs == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.json").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        train(CONFIG, out=other, overwrite=True)
    assert (other / "manifest.json").read_text() == "mine"


def test_what_a_run_leaves_that_was_killed_at_once_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / "config.yaml.partial").write_text("da")
    (tmp_path / "initial.safetensors").write_text("weights of a run without settings")
    assert train(replace(CONFIG, epochs=1), out=tmp_path).folder == tmp_path
    # No other run begins with them, when it is resumed.
    assert not (tmp_path / "initial.safetensors").exists()


def test_a_second_process_is_kept_out(run):
    code = f"from vaentropy.runs import resume; resume({str(run.folder)!r})"
    with RunFolder(run.folder).locked():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use by another process" in done.stderr


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "manifest.json", "history.jsonl", "checkpoints"])
def test_links_that_lead_out_of_the_folder_are_refused(copy_of_run, tmp_path, name):
    outside = tmp_path / "outside"
    (copy_of_run / name).rename(outside)
    (copy_of_run / name).symlink_to(outside)
    before = contents(tmp_path)
    with pytest.raises(DataError, match="leads out of the run's folder"):
        resume(copy_of_run)
    assert contents(tmp_path) == before


def test_a_newer_schema_is_refused(copy_of_run):
    manifest = json.loads((copy_of_run / "manifest.json").read_text())
    (copy_of_run / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    (copy_of_run / "config.yaml").write_text("a_setting_of_the_future: 1")
    for use in (load, resume, evaluate_run, describe_run):
        with pytest.raises(DataError, match=r"was made by a newer vaentropy \(schema 99"):
            use(copy_of_run)


# --- the other verbs


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """A run on data far from 0, standardised."""
    folder = tmp_path_factory.mktemp("scaled")
    x = np.random.default_rng(0).normal(size=(200, 4)) * [1, 10, 100, 1000] + 5000
    np.save(folder / "x.npy", x)
    config = RunConfig(data=str(folder / "x.npy"), scale="standard", latent_dim=2, hidden=(8,), epochs=20)
    return train(config, out=folder / "run"), x


def test_evaluations_say_the_elbo_in_the_units_of_the_file(scaled):
    run, _ = scaled
    parts = evaluate_run(run.folder)
    scale = torch.as_tensor(run.data.scaling.scale)
    assert parts["train"].data_elbo == pytest.approx(parts["train"].elbo - float(scale.log().sum()), abs=1e-9)
    assert parts["held_out"].elbo == run.history.held_out.elbo
    # The scaling is that of the training rows, also for other data.
    same_rows = evaluate_run(run.folder, data=str(run.folder.parent / "x.npy"))["data"]
    both = (parts["train"].elbo * 180 + parts["held_out"].elbo * 20) / 200
    assert same_rows.num_points == 200 and same_rows.elbo == pytest.approx(both, abs=0.2)


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet"])
def test_encode_writes_posteriors_row_by_row(scaled, tmp_path, ending):
    run, x = scaled
    out = tmp_path / f"z.{ending}"
    assert encode_run(run.folder, out, variance=True) == 200
    read = {"npy": np.load, "csv": pd.read_csv, "parquet": pd.read_parquet}[ending](out)
    if ending != "npy":
        assert list(read.columns) == ["mean_0", "mean_1", "variance_0", "variance_1"]
    q = load(run.folder).posterior(run.data.scaling.apply(torch.from_numpy(x)).float())
    expected = torch.cat([q.mean, q.variance], -1).detach().numpy()
    np.testing.assert_allclose(np.asarray(read), expected, rtol=1e-5, atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(UsageError, match=r"exists; name another file with --out, or replace it with --overwrite"):
        encode_run(run.folder, out)
    assert encode_run(run.folder, out, overwrite=True) == 200


def test_reconstructions_and_samples_are_in_the_units_of_the_file(scaled, tmp_path):
    run, x = scaled
    reconstruct_run(run.folder, tmp_path / "x.npy")
    model, scaling = load(run.folder), run.data.scaling
    expected = scaling.undo(model.reconstruct(scaling.apply(torch.from_numpy(x)).float()))
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected.numpy(), rtol=1e-5)
    sample_run(run.folder, tmp_path / "s.npy", 500, noise=True, seed=3)
    samples = np.load(tmp_path / "s.npy")
    assert samples.shape == (500, 4)
    np.testing.assert_allclose(samples.mean(0), x.mean(0), rtol=0.1)
    np.testing.assert_allclose(samples.std(0), x.std(0), rtol=0.3)


def test_an_interrupted_output_leaves_nothing(scaled, tmp_path, monkeypatch):
    run, _ = scaled
    with pytest.raises(KeyboardInterrupt):
        encode_run(run.folder, tmp_path / "z.csv", on_batch=lambda rows: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []


def test_calibrate_leaves_a_run_with_optimal_variances(tmp_path):
    run = train(replace(CONFIG, variances="learned", epochs=2), out=tmp_path / "run")
    before = contents(run.folder)
    folder, old, new = calibrate_run(run.folder, out=tmp_path / "calibrated")
    assert contents(run.folder) == before
    assert new.elbo > old.elbo + 0.05 and abs(new.gap) < 0.03 < abs(old.gap)
    assert new.elbo == pytest.approx(old.elbo + old.gains.variance + float(old.gains.prior_variance.sum()), abs=0.05)
    assert evaluate_run(folder)["train"].elbo == pytest.approx(new.elbo, abs=0.05)
    assert describe_run(folder)["manifest"]["calibrated_from"] == str(run.folder)
    with pytest.raises(UsageError, match="holds a run"):
        calibrate_run(run.folder, out=folder)
    with pytest.raises(UsageError, match="expected another one than that of the run itself"):
        calibrate_run(run.folder, out=run.folder, overwrite=True)
    assert contents(run.folder) == before


def test_a_fixed_variance_cannot_be_calibrated(tmp_path):
    run = train(replace(CONFIG, model="vae0", epochs=1), out=tmp_path / "run")
    with pytest.raises(UsageError, match=r"whose σ² is fixed .*; learn it with: vaentropy continue .* --model vae1"):
        calibrate_run(run.folder, out=tmp_path / "calibrated")
    assert not (tmp_path / "calibrated").exists()


def test_missing_values_streams_and_convolutions_go_through_a_run(tmp_path):
    x = np.random.default_rng(0).normal(size=(400, 3))
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    np.save(tmp_path / "x.npy", x)
    config = RunConfig(
        data=str(tmp_path / "x.npy"), missing="ignore", scale="standard", stream=True, epochs=3, hidden=(8,)
    )
    run = train(config, out=tmp_path / "run")
    assert run.history.train.observed_fraction.mean() == pytest.approx(0.8, abs=0.05)
    assert evaluate_run(run.folder)["train"].elbo == run.history.train.elbo
    assert encode_run(run.folder, tmp_path / "z.npy") == 400
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    config = RunConfig(data=str(tmp_path / "images.npy"), network="conv", hidden=(4, 8), dequantise=True, epochs=2)
    run = train(config, out=tmp_path / "conv")
    assert run.history.train.bits_per_dim > 0 and reconstruct_run(run.folder, tmp_path / "r.npy") == 60
    assert np.load(tmp_path / "r.npy").shape == (60, 1, 8, 8)


def test_a_run_that_is_to_be_overwritten_is_there_until_the_new_one_has_begun(copy_of_run, monkeypatch):
    from vaentropy.training import loop

    (copy_of_run / "notes.txt").write_text("mine")
    before = contents(copy_of_run)

    def fails(*args, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", fails)
        with pytest.raises(MemoryError):
            train(CONFIG, out=copy_of_run, overwrite=True)
    assert contents(copy_of_run) == before
    with pytest.raises(UsageError, match="patience=3 given without held-out data"):
        train(replace(CONFIG, held_out=0.0, patience=3), out=copy_of_run, overwrite=True)
    assert contents(copy_of_run) == before
    train(replace(CONFIG, epochs=1), out=copy_of_run, overwrite=True)
    assert not (copy_of_run / ".replaced").exists()


@pytest.mark.parametrize("then", ["resumed", "overwritten, in vain"])
def test_a_run_that_was_half_set_aside_is_whole_again(copy_of_run, monkeypatch, then):
    from pathlib import Path

    before, real, moves = contents(copy_of_run), Path.replace, 0

    def cut(path, target):
        nonlocal moves
        moves += Path(target).parent.name == ".replaced"
        if moves == 4:
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, out=copy_of_run, overwrite=True)
    assert len(list((copy_of_run / ".replaced").iterdir())) == 3 and (copy_of_run / "config.yaml").exists()
    if then == "resumed":
        assert (
            resume(copy_of_run).history.train.elbo
            == json.loads(before[copy_of_run / "evaluation.json"])["train"]["elbo"]
        )
        untimed = ("manifest.json", "evaluation.json")
        assert [path for path in before if path.read_bytes() != before[path] and path.name not in untimed] == []
    else:
        with pytest.raises(TrainingError):
            train(replace(CONFIG, learning_rate=1e9, schedule="constant", epochs=30), out=copy_of_run, overwrite=True)
        assert contents(copy_of_run) == before
    assert not (copy_of_run / ".replaced").exists()


def test_a_run_that_was_half_removed_does_not_come_back(copy_of_run):
    shutil.copytree(copy_of_run, copy_of_run / ".replaced")
    before = contents(copy_of_run)
    for name in ("checkpoints", "model.safetensors"):
        path = copy_of_run / ".replaced" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    resume(copy_of_run)
    assert not (copy_of_run / ".replaced").exists()
    weights = copy_of_run / "model.safetensors"
    assert weights.read_bytes() == before[weights]


def test_what_has_nothing_to_resume_is_left_as_it_is(run, tmp_path):
    folder, _, _ = calibrate_run(run.folder, out=tmp_path / "calibrated")
    before = contents(folder)
    with pytest.raises(
        UsageError, match=r"is finished and has no checkpoints.*; train it further with: vaentropy continue "
    ):
        resume(folder)
    assert contents(folder) == before


def test_the_best_weights_can_be_loaded(run, tmp_path):
    best = load(run.folder, best=True)
    elbos, epochs = run.history["held_out_elbo"][:-1], run.history.at("held_out_elbo")[:-1]
    data = RunConfig.from_dict(RunFolder(run.folder).config().to_dict())
    how = run.history.held_out.expectation
    assert evaluate(best, load_own(data).held_out, expectation=how).elbo == max(elbos) and epochs
    folder, _, _ = calibrate_run(run.folder, out=tmp_path / "calibrated")
    with pytest.raises(DataError, match="has no checkpoint with a best held-out ELBO"):
        load(folder, best=True)


def test_a_run_can_be_used_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("mine.npy", np.random.default_rng(0).normal(size=(60, 3)))
    run = train(replace(CONFIG, data="mine.npy", held_out=0.2), out="run")
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "run")["train"].elbo == run.history.train.elbo


def test_a_link_that_leads_nowhere_is_no_endless_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UsageError, match="runs exists and is not a folder"):
        train(replace(CONFIG, epochs=1))


@pytest.fixture
def small_mnist(tmp_path):
    """Ten images to train on and four held out, in the files that MNIST has."""
    for part, number in (("train", 10), ("t10k", 4)):
        pixels = np.random.default_rng(number).integers(0, 256, (number, 28, 28), dtype=np.uint8)
        header = b"\0\0\x08\x03" + np.array(pixels.shape, dtype=">u4").tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    return tmp_path


def test_an_official_held_out_set_is_encoded_too_and_its_change_noticed(small_mnist):
    config = RunConfig(data="mnist", data_folder=str(small_mnist), hidden=(8,), epochs=1, dequantise=True)
    run = train(config, out=small_mnist / "run")
    assert encode_run(run.folder, small_mnist / "z.npy") == 14
    q = load(run.folder).posterior(torch.cat([run.data.train, run.data.held_out]))
    np.testing.assert_allclose(np.load(small_mnist / "z.npy"), q.mean.detach().numpy(), rtol=1e-4, atol=1e-5)
    # In gray levels: the noise that was added is taken off again on average.
    reconstruct_run(run.folder, small_mnist / "x.npy")
    expected = 256 * load(run.folder).reconstruct(run.data.held_out) - 0.5
    np.testing.assert_allclose(np.load(small_mnist / "x.npy")[10:], expected.flatten(1).numpy(), rtol=1e-4, atol=1e-3)
    held_out = small_mnist / "t10k-images-idx3-ubyte"
    held_out.write_bytes(held_out.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match="the data have changed"):
        evaluate_run(run.folder)


# --- other data: tables by name, moved files


@pytest.fixture(scope="module")
def table_run(tmp_path_factory):
    """A run on a table with a label column."""
    folder = tmp_path_factory.mktemp("table")
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)) * [1, 5, 25], columns=["a", "b", "c"])
    frame.assign(label="x").to_csv(folder / "x.csv", index=False)
    config = RunConfig(
        data=str(folder / "x.csv"), exclude=("label",), scale="standard", latent_dim=1, hidden=(8,), epochs=2
    )
    return train(config, out=folder / "run"), frame


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame,
        lambda frame: frame[["c", "a", "b"]],
        lambda frame: frame.assign(label="y", more=1.0),
    ],
)
def test_other_tables_are_read_by_the_names_of_their_columns(table_run, tmp_path, change):
    run, frame = table_run
    encode_run(run.folder, tmp_path / "expected.npy")
    change(frame).to_csv(tmp_path / "other.csv", index=False)
    encode_run(run.folder, tmp_path / "z.npy", data=str(tmp_path / "other.csv"))
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), np.load(tmp_path / "expected.npy"), rtol=1e-5)


def test_arrays_are_taken_where_the_run_was_on_a_table_and_a_missing_column_is_named(table_run, tmp_path):
    run, frame = table_run
    encode_run(run.folder, tmp_path / "expected.npy")
    np.save(tmp_path / "x.npy", frame.to_numpy())
    encode_run(run.folder, tmp_path / "z.npy", data=str(tmp_path / "x.npy"))
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), np.load(tmp_path / "expected.npy"), rtol=1e-5)
    reconstruct_run(run.folder, tmp_path / "x_hat.csv")
    assert list(pd.read_csv(tmp_path / "x_hat.csv").columns) == ["a", "b", "c"]
    frame.rename(columns={"b": "B"}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(UsageError, match="no column 'b'"):
        encode_run(run.folder, tmp_path / "w.npy", data=str(tmp_path / "other.csv"))


def test_a_file_that_was_moved_is_found_in_the_folder_that_is_named(table_run, tmp_path):
    run, _ = table_run
    (tmp_path / "new").mkdir()
    shutil.copy(run.config.data, tmp_path / "new" / "x.csv")
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    config = RunFolder(copy).config()
    RunFolder(copy).write_config(replace(config, data=str(tmp_path / "gone" / "x.csv")))
    with pytest.raises(DataError, match="no such file"):
        evaluate_run(copy)
    assert evaluate_run(copy, data_folder=str(tmp_path / "new"))["train"].elbo == run.history.train.elbo
    assert resume(copy, data_folder=str(tmp_path / "new")).history.train.elbo == run.history.train.elbo


def test_scaling_is_advised_where_features_differ_much(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 3)) * [1, 1, 30])
    options = {"data": str(tmp_path / "x.npy"), "latent_dim": 1, "hidden": (4,), "epochs": 1}
    advice = "features lie far from 0 or differ much in scale"
    assert any(advice in remark for remark in train(RunConfig(**options), out=tmp_path / "a").remarks)
    scaled = train(RunConfig(**options, scale="standard"), out=tmp_path / "b")
    assert not any(advice in remark for remark in scaled.remarks)


def test_a_run_set_aside_by_a_process_that_was_killed_is_not_lost(copy_of_run):
    before = {path.name: path.read_bytes() for path in copy_of_run.iterdir() if path.suffix}
    room._set_aside(RunFolder(copy_of_run))  # and here the process is killed
    with pytest.raises(UsageError, match=r"was being replaced when the process was killed, in .*\.replaced"):
        train(CONFIG, out=copy_of_run)
    with pytest.raises(UsageError), room.filled(copy_of_run, "", overwrite=True):
        raise UsageError("the new run comes to nothing")
    assert {path.name: path.read_bytes() for path in copy_of_run.iterdir() if path.suffix} == before


def test_select_compares_what_train_would_train():
    config = replace(CONFIG, epochs=1)
    selection = select(config, (3, 1), num_seeds=1)
    data = load_own(config)
    assert (selection.num_train, selection.num_held_out) == (len(data.train), len(data.held_out))
    assert selection.model == "vae2" and selection.data == f"pca ({data.description})"
    for latent_dim in (1, 3):
        (trained := build_model(replace(config, latent_dim=latent_dim), data.data_shape)).train()
        settings = config.settings()
        fit(trained, data.train, progress=False, **settings)
        for name, tensor in trained.state_dict().items():
            assert torch.equal(tensor, selection.models[latent_dim].state_dict()[name]), name
    # Each training begins with other weights.
    two = select(config, (1, 2), num_seeds=2)
    assert two[1].spread is not None and two[1].spread > 0
    assert select(config, (0, 1, 2, 3), linear=True).supported == 2
