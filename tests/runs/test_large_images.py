"""A folder of images of 256×256: trained on by the command, with a report that stays small."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

OPTIONS = "--network conv --hidden 4,8,8,8 --latent-dim 4 --epochs 2 --batch-size 4 --micro-batch-size 2 --recompute"


@pytest.fixture
def images(tmp_path):
    """Noise, which compresses worst, on colours that change slowly."""
    folder, chance = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        coarse = Image.fromarray(chance.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = smooth + chance.integers(-9, 10, smooth.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def vaentropy(*arguments):
    command = [sys.executable, "-m", "vaentropy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16"])
def test_train_on_a_folder_of_large_images(images, tmp_path, precision):
    run = tmp_path / "run"
    command = ["train", str(images), *OPTIONS.split(), "--precision", precision, "--out", str(run), "--json"]
    vaentropy(*command)
    assert (run / "report.html").stat().st_size < 3e6
    # Nothing of it has an entry for each of 196,608 pixels.
    assert (run / "evaluation.json").stat().st_size < 1e5
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["train"]["num_points"] == 7 and "decoder_residuals" not in stored["train"]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert history[-1]["running_elbo"] > history[0]["running_elbo"]
    out = tmp_path / "x.npy"
    vaentropy("reconstruct", str(run), "--out", str(out))
    assert np.load(out).shape == (8, 3, 256, 256)
