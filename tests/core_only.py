"""Shows that the core works beside torch, numpy and safetensors alone: run it with an interpreter that has no more."""

import importlib.util
import math
import sys
import tempfile
from pathlib import Path

EXTRAS = (
    "matplotlib",
    "tensorboard",
    "wandb",
    "mlflow",
    "click",
    "rich",
    "yaml",
    "sklearn",
    "scipy",
    "pyarrow",
    "PIL",
    "pandas",
    "polars",
    "pythae",
    "diffusers",
    "pyro",
    "scvi",
    "lightning",
    "pytorch_lightning",
    "jaxtyping",
    "beartype",
)


def main() -> None:
    installed = [name for name in EXTRAS if importlib.util.find_spec(name)]
    assert not installed, f"this is no bare environment: it has {', '.join(installed)}"

    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    import vaentropy
    from vaentropy.data import load
    from vaentropy.expectation import Frozen, GaussHermite
    from vaentropy.linear import DataMoments

    # Every public name, every module of the core.
    for name in vaentropy._HOMES:
        getattr(vaentropy, name)
    for name in ("adapters", "cli", "runs", "studies", "progress"):
        importlib.import_module(f"vaentropy.{name}")

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", np.arange(60.0).reshape(20, 3))
        assert load(Path(folder) / "x.npy", scale="standard").data_shape == (3,)

    data = load("pca")
    torch.manual_seed(0)
    for family in (vaentropy.vae0, vaentropy.vae1, vaentropy.vae2, vaentropy.vae3):
        model = family(10, 2)
        history = vaentropy.fit(model, data.train[:1000], held_out=data.held_out[:200], epochs=2)
        assert math.isfinite(history.train.elbo) and "ELBO" in str(history.train)
        calibrated = vaentropy.calibrate(model, data.train[:1000], expectation=Frozen())
        evaluation = vaentropy.evaluate(calibrated, data.train[:1000], expectation=Frozen())
        assert abs(evaluation.gap) < 1e-5 * abs(evaluation.elbo), evaluation
        with tempfile.TemporaryDirectory() as folder:
            save_file(model.state_dict(), Path(folder) / "model.safetensors")
            model.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    statistics = DataMoments.of(data.train)
    linear = vaentropy.LinearVAE.optimum(statistics, 2)
    exact = vaentropy.evaluate(linear, data.train.double(), expectation=GaussHermite(2))
    assert abs(exact.elbo - float(linear.elbo(statistics).detach())) < 1e-10

    # What needs more says which extra brings it, and the command exits with 2.
    from vaentropy.cli import main as command
    from vaentropy.errors import MissingExtraError
    from vaentropy.studies import verify

    assert command(["--help"]) == 2
    estimator = "vaentropy.integrations.sklearn"
    for missing in (lambda: load("digits"), lambda: load("x.csv"), verify, lambda: importlib.import_module(estimator)):
        try:
            missing()
        except MissingExtraError as error:
            assert "pip install" in str(error)
        else:
            raise AssertionError("an extra that is not installed was not missed")
    print(f"the core works with Python {sys.version.split()[0]}, torch {torch.__version__} and no extras")


if __name__ == "__main__":
    main()
