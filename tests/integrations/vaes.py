"""A VAE as a user of Lightning writes one, for both of its packages, and data for it."""

from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.utils.data import DataLoader, TensorDataset

import vaentropy as ve

D, H, VARIANCE = 4, 2, 0.5


def data(n: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loader(x: torch.Tensor, batch_size: int = 5) -> DataLoader:
    return DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=batch_size)


def module(package: str, seed: int = 0, **more: Any) -> Any:
    """A LightningModule of the package, in float64, with what an evaluation could disturb: dropout and BatchNorm."""
    library = import_module(package)

    class LitVAE(library.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(seed)
            self.encoder = nn.Sequential(
                nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2 * H)
            )
            self.decoder = nn.Sequential(nn.Linear(H, 8), nn.Tanh(), nn.Linear(8, D))
            self.double()

        def posterior(self, x):
            mean, log_variance = self.encoder(x).chunk(2, -1)
            return Independent(Normal(mean, (log_variance / 2).exp()), 1)

        def loss(self, x):
            q = self.posterior(x)
            prior = Independent(Normal(torch.zeros(H).double(), torch.ones(H).double()), 1)
            reconstruction = Normal(self.decoder(q.rsample()), VARIANCE**0.5).log_prob(x).sum(-1)
            return -(reconstruction - kl_divergence(q, prior)).mean()

        def training_step(self, batch, batch_idx):
            return self.loss(batch[0])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", self.loss(batch[0]))

        def test_step(self, batch, batch_idx):
            return self.loss(batch[0])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-2)

    for name, value in more.items():
        setattr(LitVAE, name, value)
    return LitVAE()


def model_of(lit: Any) -> Any:
    return ve.from_functions(lit.posterior, lit.decoder, variance=VARIANCE, modules=[lit])


def bind(lit: Any, batch: Any) -> Any:
    """As users write it, without a word on modules: the callback has the module."""
    return ve.from_functions(lit.posterior, lit.decoder, variance=VARIANCE), batch[0]


def trainer(package: str, *callbacks: Any, folder: Any, **options: Any) -> Any:
    """A Trainer that says nothing."""
    library = import_module(package)
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    options = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder, **quiet, **options}
    return library.Trainer(callbacks=list(callbacks), **options)
