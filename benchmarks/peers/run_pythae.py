"""pythae's VAE, 784-512-10-512-784 with ReLU, trained by its own BaseTrainer, as its users run it.

Measured is `BaseTrainer.train_step`, its epoch: DataLoader over a dataset in memory, step, callbacks and the progress
bar that it always has. Left out, to its advantage: making the trainer, the copy of the model that `train` takes after
each better epoch, and saving.
"""

import time
from functools import cache
from importlib.metadata import version
from tempfile import mkdtemp

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from serve import serve
from torch import nn

DATA_DIM, HIDDEN, LATENT_DIM = 784, 512, 10


class Encoder(BaseEncoder):
    """One hidden layer and two heads."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(DATA_DIM, HIDDEN), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(HIDDEN, LATENT_DIM), nn.Linear(HIDDEN, LATENT_DIM)

    def forward(self, x):
        features = self.hidden(x)
        return ModelOutput(embedding=self.mean(features), log_covariance=self.log_variance(features))


class Decoder(BaseDecoder):
    """One hidden layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(LATENT_DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DATA_DIM))

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers(z))


@cache
def prepared(batch_size, steps):
    """A trainer whose epoch has so many steps, warmed up by one of them."""
    x = torch.rand(batch_size * steps, DATA_DIM, generator=torch.Generator().manual_seed(0))
    config = VAEConfig(input_dim=(DATA_DIM,), latent_dim=LATENT_DIM, reconstruction_loss="mse")
    trainer = BaseTrainer(
        VAE(config, encoder=Encoder(), decoder=Decoder()),
        BaseDataset(x, torch.zeros(len(x))),
        training_config=BaseTrainerConfig(
            output_dir=mkdtemp(prefix="pythae-"),
            per_device_train_batch_size=batch_size,
            learning_rate=1e-3,
            no_cuda=True,
        ),
    )
    trainer.prepare_training()
    _epoch(trainer)
    return trainer


def _epoch(trainer):
    start = time.perf_counter()
    trainer.train_step(epoch=1)
    seconds = time.perf_counter() - start
    trainer.callback_handler.on_epoch_end(training_config=trainer.training_config)
    return seconds


def measure(batch_size, steps):
    """Seconds per step of an epoch."""
    return _epoch(prepared(batch_size, steps)) / steps


if __name__ == "__main__":
    serve(measure, pythae=version("pythae"), torch=torch.__version__)
