"""The study of collapse at a tiny size, on images that are made here."""

import struct

import numpy as np
import pytest
import torch

from vaentropy.errors import VaentropyError
from vaentropy.studies.activity import FIXED, LEARNED
from vaentropy.studies.experiments import collapse
from vaentropy.studies.study import Plan

IMAGES = {"train": 60, "t10k": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as MNIST and Fashion-MNIST have them: images with one factor, and of noise."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        (folder / name).mkdir()
        for part, number in IMAGES.items():
            pixels = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
            if name == "mnist":
                pixels[:] = rng.integers(0, 256, (number, 1, 1))
            header = struct.pack(">IIII", 0x803, number, 28, 28)
            (folder / name / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    return folder


@pytest.fixture(scope="module")
def ran(folder):
    """The outcome at a tiny size, and (arm, model, x, held-out) of each training."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        original = collapse.train

        def train(arm, x, held_out, plan, replicates):
            trials = original(arm, x, held_out, plan, replicates, epochs=2 if seen else 120)
            seen.append((arm, trials.models[0], x, held_out))
            return trials

        patch.setattr(collapse, "train", train)
        patch.setattr(collapse, "ROWS_QUICK", 200)
        return collapse.run(Plan(data_folder=str(folder), progress=False)), seen


def test_rows_are_of_each_data_set_with_both_variances(ran):
    outcome, seen = ran
    assert [row["data"] for row in outcome.rows] == [
        name for name in ("MNIST", "Fashion-MNIST", "SUSY stand-in") for _ in (FIXED, LEARNED)
    ]
    assert [row["training"] for row in outcome.rows] == 3 * [FIXED, LEARNED]
    assert [row["latents"] for row in outcome.rows] == [20] * 4 + [12] * 2
    for row, (arm, model, x, held_out) in zip(outcome.rows, seen, strict=True):
        assert arm.name == row["training"]
        with torch.no_grad():
            # 1.42 + log τ, without the library's entropies.
            entropies = 0.5 * np.log(2 * np.pi * np.e) + model.posterior(x).log_variance.mean(0) / 2
        assert row["active"] == int((entropies < 1.0).sum())
        assert (row["variance"] == 1.0) == (row["training"] == FIXED)
        assert not (torch.cdist(x.flatten(1), held_out.flatten(1)) < 1e-6).all(1).any()
    assert len(outcome.figure.axes) == 3 and "SUSY stand-in 0 and" in outcome.finding


def test_pairs_are_trained_on_the_same_data(ran):
    _, seen = ran
    for (_, _, first, _), (_, _, second, _) in zip(seen[::2], seen[1::2], strict=True):
        assert first is second


def test_what_a_latent_has_to_bring_decides(ran):
    outcome, seen = ran
    # A factor of variance above σ² = 1 is worth a latent; noise of pixels, of variance 1/12, is not (as in
    # probabilistic PCA, where eigenvalues below σ² collapse).
    eigenvalues = [float(np.linalg.eigvalsh(np.cov(seen[row][2].flatten(1).numpy().T))[-1]) for row in (0, 4)]
    assert eigenvalues[0] > 20 and eigenvalues[1] < 1
    assert outcome.rows[0]["active"] >= 1 and outcome.rows[4]["active"] == 0


def test_missing_files_are_an_error(tmp_path):
    with pytest.raises(VaentropyError, match="mnist: no train-images-idx3-ubyte"):
        collapse.run(Plan(data_folder=str(tmp_path), progress=False))


def test_settings_of_the_paper():
    plan = Plan(scale="paper", exact_settings=True)
    for pair, batch_size in ((collapse.OF_IMAGES, 2_000), (collapse.OF_TABLES, 1_024)):
        for arm in pair:
            settings = arm.settings(plan)
            assert settings["batch_size"] == batch_size and settings["learning_rate"] == 1e-3
            assert settings["expectation"].num_samples == 100
