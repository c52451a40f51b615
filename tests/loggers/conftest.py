"""One training, whose rows all loggers write, and an environment in which no library sends anything."""

import os

import pytest
import torch

import vaentropy as ve

# Read when mlflow is imported.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["WANDB_ERROR_REPORTING"] = "false"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """None of the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")) and name not in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def history():
    """Five epochs of two steps, evaluated after the third and the fifth."""
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    model = ve.vae1(3, 2, (4,))
    options = {"epochs": 5, "batch_size": 20, "evaluate_every": 3, "progress": False}
    return ve.fit(model, x[:40], held_out=x[40:], log_jacobian=-1.5, **options)
