"""Run folders: what they hold, that they give the model back, and what happens to spoiled ones."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from vaentropy.errors import DataError, TrainingError, UsageError
from vaentropy.runs import RunConfig, evaluate_run, load, read_config, to_json, train

CONFIG = RunConfig(data="pca", held_out=0.98, model="vae2", latent_dim=3, hidden=(8, 6), epochs=3, seed=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(CONFIG, out=tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def copy_of_run(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "copy")


def test_a_run_leaves_its_files_and_nothing_half_written(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"config.yaml", "manifest.json", "history.jsonl", "evaluation.json", "model.safetensors"}


def test_the_config_repeats_the_run(run, tmp_path):
    assert read_config(run.folder) == CONFIG
    again = train(read_config(run.folder), out=tmp_path / "again")
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


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


def test_other_data_are_one_part(run):
    parts = evaluate_run(run.folder, data="pca-ring")
    assert set(parts) == {"data"} and parts["data"].num_points == 20_000


def test_history_and_manifest(run):
    rows = [json.loads(line) for line in (run.folder / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["data"]["data_shape"] == [10]
    assert len(manifest["data"]["sha256_train"]) == 64


def test_a_folder_in_use_is_not_touched(run):
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        train(CONFIG, out=run.folder)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_run_that_fails_leaves_no_folder(tmp_path):
    diverging = replace(CONFIG, epochs=30, learning_rate=1e8, schedule="constant", variances="learned")
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
    with pytest.raises(DataError, match=f"is no finished run: it has no {name}"):
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
    import numpy as np

    path = tmp_path / "mine.npy"
    np.save(path, np.random.default_rng(0).normal(size=(60, 3)))
    run = train(replace(CONFIG, data=str(path), held_out=0.2), out=tmp_path / "run")
    assert set(evaluate_run(run.folder)) == {"train", "held_out"}
    np.save(path, np.random.default_rng(1).normal(size=(60, 3)))
    with pytest.raises(DataError, match="has changed since the run was trained on it"):
        evaluate_run(run.folder)
    assert set(evaluate_run(run.folder, data=str(path))) == {"data"}
