"""`diagnose` as a user meets it: data of every kind, the model left alone, what it prints, what it refuses."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vaentropy as ve
from vaentropy.cli import main
from vaentropy.data import Rows
from vaentropy.errors import DataError, UsageError
from vaentropy.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from vaentropy.runs import diagnose_run

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 2, generator=GENERATOR) @ torch.randn(2, 5, generator=GENERATOR)
X = X + 0.3 * torch.randn(120, 5, generator=GENERATOR)


def model(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ve.vae1(5, 2, (8,), **options)


def numbers(diagnosis):
    return {n.what: n.value for n in diagnosis.tested}


@pytest.fixture(scope="module")
def whole():
    """Of all data at once."""
    return numbers(ve.diagnose(model(), X))


@pytest.mark.parametrize(
    "data",
    [
        X.numpy(),
        pd.DataFrame(X.numpy()),
        DataLoader(TensorDataset(X, torch.zeros(120)), batch_size=120),
        DataLoader(TensorDataset(X, torch.zeros(120)), batch_size=50),
        Rows(X, shard_size=37),
        X.double(),
    ],
    ids=["numpy", "pandas", "loader", "batches", "source", "float64"],
)
def test_data_of_every_kind_give_the_same(data, whole):
    found = numbers(ve.diagnose(model(), data))
    assert found.keys() == whole.keys()
    # Noise differs with the batches, gradients with the order of sums; the norm of an untrained model is large.
    for what in ("prior residuals", "ELBO of the best linear VAE less that of this model"):
        assert math.isclose(found[what], whole[what], rel_tol=0.02, abs_tol=1e-4)
    assert math.isclose(found["gradient norm"], whole["gradient norm"], rel_tol=0.1)


def test_the_model_and_the_generators_are_left_alone():
    encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
    mine = ve.VAE(encoder, MLPDecoder((8,)), data_shape=5, latent_dim=2)
    mine.encoder[1].eval()
    mine.latent_mean.bias.requires_grad_(False)
    mine.latent_layer.weight.grad = torch.ones_like(mine.latent_layer.weight)
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    modes, random = [m.training for m in mine.modules()], torch.get_rng_state()
    for mode in ("eval", "train"):
        ve.diagnose(mine, X, mode=mode)
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())
    assert [m.training for m in mine.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert not mine.latent_mean.bias.requires_grad and bool((mine.latent_layer.weight.grad == 1).all())
    assert [p.grad is None for p in mine.encoder.parameters()] == [True] * 4


def test_equal_seeds_give_equal_diagnoses():
    one, other = (ve.diagnose(model(), X).to_dict() for _ in range(2))
    assert one == other


def test_images():
    x = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = ConvEncoder((1, 8, 8), (4, 8)), ConvDecoder((1, 8, 8), (8, 4))
        conv = ve.VAE(encoder, decoder, data_shape=(1, 8, 8), latent_dim=3)
    diagnosis = ve.diagnose(conv, x)
    assert all(move.distance < 0.01 for move in diagnosis.gradients.moves.values())
    assert diagnosis["not_stationary"].nats > 0.1


def test_missing_values():
    x = X.clone()
    x[::3, 1] = math.nan
    diagnosis = ve.diagnose(model(), x, missing="ignore")
    assert diagnosis.train.observed_fraction is not None and diagnosis.gradients.moves
    assert "ELBO of the best linear VAE less that of this model" not in numbers(diagnosis)
    assert "against a linear VAE: values are missing" in diagnosis.untested
    with pytest.raises(DataError, match="row 0, column 1"):
        ve.diagnose(model(), x)


def test_context():
    mine = model()
    loader = DataLoader(TensorDataset(X, torch.ones(120, 1)), batch_size=60)
    diagnosis = ve.diagnose(mine, loader, bind=lambda batch: (mine, batch[0]))
    assert any("bind" in reason for reason in diagnosis.untested) and diagnosis.gradients.norm > 0
    assert not diagnosis.gradients.moves and not diagnosis.gradients.steps
    assert "against a linear VAE: the model needs context (bind)" in diagnosis.untested


def test_one_point_and_one_latent():
    assert ve.diagnose(ve.vae1(1, 1, (3,)), torch.zeros(1, 1)).train.num_points == 1
    assert len(ve.diagnose(ve.vae1(5, 1, (3,)), X).latents) == 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"data": iter([X])}, "data of type list_iterator given, which can be read once"),
        ({"held_out": (x for x in [X])}, "held_out of type generator"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"collapse": -1.0}, "collapse=-1.0"),
        ({"num_draws": 1}, "num_draws=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_in_one_line(options, word):
    options = {"data": X, **options}
    with pytest.raises(UsageError, match=word) as error:
        ve.diagnose(model(), **options)
    assert "\n" not in str(error.value)


def test_what_it_says_is_plain_data():
    diagnosis = ve.diagnose(model(), X, held_out=X[:30])
    stored = json.loads(json.dumps(diagnosis.to_dict()))
    assert [f["kind"] for f in stored["findings"]] == [f.kind for f in diagnosis.findings]
    assert stored["latents"]["latent"] == [0, 1] and stored["clean"] is False
    frame = diagnosis.to_frame()
    assert list(frame["kind"]) == [f.kind for f in diagnosis.findings]
    assert np.all(np.diff(frame["nats"][frame["level"] == "problem"]) <= 0)
    page = diagnosis._repr_html_()
    assert page.count("<tr>") == 1 + len(diagnosis.findings) and "σ²*/σ²" in page
    with pytest.raises(KeyError, match="no finding 'none'"):
        diagnosis["none"]
    text = repr(diagnosis)
    assert all(len(line) <= 140 for line in text.splitlines())
    for finding in diagnosis.findings:
        assert finding.verdict in text and str(finding) in text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose")
    np.save(folder / "x.npy", X.numpy())
    arguments = [
        "train",
        str(folder / "x.npy"),
        "--hidden",
        "8",
        "--epochs",
        "2",
        "--no-report",
        "--out",
        str(folder / "run"),
    ]
    assert main(arguments) == 0
    return folder / "run"


def test_of_a_run(run, capfd):
    diagnosis = diagnose_run(run, progress=False)
    assert main(["diagnose", str(run)]) == 0
    out, err = capfd.readouterr()
    assert out.rstrip("\n") == repr(diagnosis) and err == ""
    assert main(["diagnose", str(run), "--json", "--collapse", "0.5", "--strict"]) == 1
    assert json.loads(capfd.readouterr().out)["run"] == str(run)
    assert main(["diagnose", str(run), "--data", str(run.parent / "x.npy")]) == 0
    assert "held-out ELBO" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--collapse", "some"], "expected 'relative', 'paper' or a KL in nats"),
        (["--tolerance", "-1"], "tolerance=-1.0 given"),
        (["--data", "nowhere.npy"], "nowhere.npy"),
        (["--seed", "-1"], "seed=-1 given"),
    ],
)
def test_a_run_diagnosed_wrongly(run, options, word, capfd):
    assert main(["diagnose", str(run), *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and word in err and err.count("\n") == 1


def test_a_folder_that_is_no_run(tmp_path, capfd):
    assert main(["diagnose", str(tmp_path)]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_unused_networks_are_no_parameters_of_the_move(whole):
    """A parameter that no output depends on changes nothing."""
    mine = model()
    mine.extra = nn.Linear(3, 3)
    found = numbers(ve.diagnose(mine, X))
    assert found == whole or all(math.isclose(found[k], whole[k], rel_tol=1e-3, abs_tol=1e-3) for k in whole)


def test_own_networks_with_affine_heads_can_make_the_moves():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mine = ve.VAE(MLPEncoder(5, (6, 4)), MLPDecoder((4, 6)), data_shape=5, latent_dim=2)
    assert all(move.distance < 0.01 for move in ve.diagnose(mine, X).gradients.moves.values())
