"""Runs of conditional models: every verb, against the model and the data by hand."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

import vaentropy as ve
from vaentropy.cli import main
from vaentropy.data import load as load_data
from vaentropy.errors import DataError
from vaentropy.runs import RunConfig, RunFolder, load, resume, select, train

NAMES = ("site", "age")
VALUES = "south,50"


@pytest.fixture(scope="module")
def frame():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(60, 3)), columns=["a", "b", "c"])
    table["site"], table["age"] = random.choice(["north", "south"], 60), random.normal(50, 10, 60)
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory, frame):
    folder = tmp_path_factory.mktemp("conditional")
    frame.to_csv(folder / "t.csv", index=False)
    config = RunConfig(
        data=str(folder / "t.csv"), condition=NAMES, scale="standard", hidden=(6,), epochs=2, dtype="float64"
    )
    return train(config, out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def rows(run, frame):
    """All rows as the model of the run sees them, and their condition."""
    folder = RunFolder(run.folder)
    scaling, coding = folder.scaling(), folder.coding()
    x = scaling.apply(torch.tensor(frame[["a", "b", "c"]].to_numpy()))
    columns = {"site": frame["site"].to_numpy().astype(str), "age": frame["age"].to_numpy()}
    return x, coding.encode(columns), scaling


def command(*arguments, code=0):
    assert main([str(a) for a in arguments]) == code


def test_the_folder_knows_the_condition(run):
    folder = RunFolder(run.folder)
    assert folder.config().condition == NAMES and folder.coding() == run.data.coding
    assert folder.columns() == ("a", "b", "c") and load(run.folder).condition_width == 3


def test_evaluate_gives_the_numbers_of_the_training_and_takes_other_data(run, rows, frame, tmp_path, capsys):
    x, c, scaling = rows
    command("evaluate", run.folder, "--json")
    assert json.loads(capsys.readouterr().out)["train"]["elbo"] == run.history.train.elbo
    # Columns in another order, and one more.
    frame[["age", "c", "b", "site", "a"]].assign(more="z").to_parquet(tmp_path / "other.parquet")
    command("evaluate", run.folder, "--data", tmp_path / "other.parquet", "--json")
    elbo = json.loads(capsys.readouterr().out)["data"]["elbo"]
    expected = ve.evaluate(run.model, ve.given(x, c), log_jacobian=scaling.log_jacobian)
    assert elbo == pytest.approx(expected.elbo, abs=1e-9)


def test_encode_reconstruct_and_sample_are_given_it(run, rows, tmp_path):
    x, c, scaling = rows
    out = tmp_path / "out.npy"
    one = RunFolder(run.folder).coding().of_texts(VALUES.split(","))
    for options, condition in (((), c), (("--condition", VALUES), one)):
        command("encode", run.folder, "--out", out, "--overwrite", *options)
        np.testing.assert_allclose(np.load(out), run.model.encode(x, condition=condition).numpy(), atol=1e-9)
        command("reconstruct", run.folder, "--out", out, "--overwrite", *options)
        expected = scaling.undo(run.model.reconstruct(x, condition=condition))
        np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-9)
    command("sample", run.folder, "--condition", VALUES, "--num-samples", 5, "--out", out, "--overwrite")
    expected = scaling.undo(run.model.sample(5, condition=one))
    np.testing.assert_allclose(np.load(out), expected.numpy(), atol=1e-9)


def test_features_alone_are_encoded_as_if_given_one_condition(run, rows, frame, tmp_path):
    frame[["a", "b", "c"]].to_csv(tmp_path / "features.csv", index=False)
    out = tmp_path / "out.npy"
    command("encode", run.folder, tmp_path / "features.csv", "--condition", VALUES, "--out", out)
    one = RunFolder(run.folder).coding().of_texts(VALUES.split(","))
    np.testing.assert_allclose(np.load(out), run.model.encode(rows[0], condition=one).numpy(), atol=1e-9)


def test_diagnosis_report_calibrated_and_continued_copies(run, tmp_path, capsys):
    command("diagnose", run.folder, "--json")
    assert json.loads(capsys.readouterr().out)["gradients"]["moves"]["decoder"]["distance"] < 0.01
    command("report", run.folder, "--out", tmp_path / "report.html")
    assert "site (2 categories), age" in (tmp_path / "report.html").read_text()
    command("calibrate", run.folder, "--out", tmp_path / "calibrated")
    command("prune", run.folder, "--latents", "1", "--out", tmp_path / "pruned")
    command("continue", run.folder, "--out", tmp_path / "continued", "--epochs", "1", "--no-report")
    for name in ("calibrated", "pruned", "continued"):
        assert load(tmp_path / name).condition_width == 3
        command("evaluate", tmp_path / name)


def test_an_interrupted_run_is_resumed_to_the_same_end(run, tmp_path, monkeypatch):
    class Cut(Exception):
        pass

    from vaentropy.training import loop

    real, steps = loop.training_step, 0

    def step(*args, **options):
        nonlocal steps
        steps += 1
        if steps == 2:
            raise Cut
        return real(*args, **options)

    monkeypatch.setattr(loop, "training_step", step)
    with pytest.raises(Cut):
        train(run.config, out=tmp_path / "cut", progress=False)
    monkeypatch.undo()
    resumed = resume(tmp_path / "cut", progress=False)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_changed_conditions_are_noticed(run, frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = RunConfig(data=str(tmp_path / "t.csv"), condition=("site",), exclude=("age",), hidden=(4,), epochs=1)
    there = train(config, out=tmp_path / "run", progress=False).folder
    swapped = {"north": "south", "south": "north"}
    frame.assign(site=frame["site"].map(swapped)).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="changed"):
        ve.runs.evaluate_run(there)


def test_labels_and_images_go_through_a_run(tmp_path):
    config = RunConfig(data="digits", condition=("labels",), hidden=(4,), epochs=1)
    done = train(config, out=tmp_path / "run", progress=False)
    data = load_data("digits", condition="labels")
    expected = ve.evaluate(done.model, data.held_out, log_jacobian=data.scaling.log_jacobian).elbo
    assert done.history.held_out.elbo == pytest.approx(expected, abs=1e-6)
    found = select(config, (1, 2), num_seeds=1, progress=False)
    numbers = {candidate.latent_dim: candidate.num_parameters for candidate in found.candidates}
    assert numbers == {h: h * 4 + 4 + 10 * 4 + 5 * 64 + 1 for h in (1, 2)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("sample RUN --out z.npy", "each of site, age"),
        ("sample RUN --out z.npy --condition south", "each of site, age"),
        ("sample RUN --out z.npy --condition east,3", "'east'"),
        ("encode RUN --out z.npy --condition south,old", "expected a number"),
        ("train digits --condition colour --out new", "'labels'"),
        ("train TABLE --condition colour --out new", "no column 'colour'"),
        ("continue RUN --condition site", "condition"),
    ],
)
def test_mistakes_are_one_line(run, arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": run.folder, "TABLE": run.config.data}
    command(*(places.get(word, word) for word in arguments.split()), code=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]
    assert not (tmp_path / "z.npy").exists() and not (tmp_path / "new").exists()


def test_a_model_without_condition_takes_none(tmp_path, capsys):
    train(RunConfig(data="digits", hidden=(4,), epochs=1), out=tmp_path / "run", progress=False)
    command("sample", tmp_path / "run", "--condition", "3", "--out", tmp_path / "z.npy", code=2)
    assert "takes none" in capsys.readouterr().err


def test_a_damaged_condition_is_refused(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    about = json.loads((folder / "manifest.json").read_text())
    about["data"]["condition"][0]["categories"] = [1, "b"]
    (folder / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="put the file of the run back"):
        load(folder)
