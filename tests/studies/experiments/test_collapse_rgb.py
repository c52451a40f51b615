"""The study of the convolutional VAE at a tiny size."""

import numpy as np
import pytest
import torch
from PIL import Image

from vaentropy.studies.activity import FIXED, LEARNED
from vaentropy.studies.experiments import collapse_rgb
from vaentropy.studies.study import Plan


@pytest.fixture
def tiny(monkeypatch):
    """Few images, one epoch; (arm, model, x, held-out) of each training is kept."""
    seen = []

    def train(arm, x, held_out, plan, replicates):
        trials = original(arm, x, held_out, plan, replicates, epochs=1)
        seen.append((arm, trials.models[0], x, held_out))
        return trials

    original = collapse_rgb.train
    monkeypatch.setattr(collapse_rgb, "train", train)
    monkeypatch.setattr(collapse_rgb, "NUMBER_QUICK", (12, 4))
    return seen


def test_rows_are_of_both_variances(tiny):
    outcome = collapse_rgb.run(Plan(progress=False))
    assert [row["training"] for row in outcome.rows] == [FIXED, LEARNED]
    for row, (_, model, x, held_out) in zip(outcome.rows, tiny, strict=True):
        assert x.shape == (12, 3, 32, 32) and held_out.shape == (4, 3, 32, 32)
        with torch.no_grad():
            entropies = 0.5 * np.log(2 * np.pi * np.e) + model.eval().posterior(x).log_variance.mean(0) / 2
        assert row["active"] == int((entropies < 1.0).sum()) and row["latents"] == 64
        assert row["mean_variance_of_features"] == pytest.approx(x.double().numpy().var(axis=0).mean(), rel=1e-9)
    assert outcome.rows[0]["variance"] == 1.0 != outcome.rows[1]["variance"]
    assert tiny[0][2] is tiny[1][2]
    assert "RGB patches" in outcome.finding and any("scikit-learn" in note for note in outcome.notes)


def test_a_folder_of_images_takes_the_place_of_the_photographs(tiny, tmp_path):
    for number in range(10):
        Image.new("RGB", (178, 218), (20 * number,) * 3).save(tmp_path / f"{number:06}.jpg")
    outcome = collapse_rgb.run(Plan(data=str(tmp_path), progress=False))
    assert tiny[0][2].shape == (6, 3, 32, 32) and tiny[0][3].shape == (4, 3, 32, 32)
    assert outcome.rows[0]["data"] == "images" and str(tmp_path) in outcome.notes[0]


def test_settings_of_the_paper():
    for arm in collapse_rgb.ARMS:
        exact = arm.settings(Plan(scale="paper", exact_settings=True))
        assert exact["batch_size"] == 1_024 and exact["learning_rate"] == 1e-3 and exact["epochs"] == 150
        assert exact["expectation"].num_samples == 100
    assert collapse_rgb.SIZE == 64 and collapse_rgb.STUDY.takes_data
