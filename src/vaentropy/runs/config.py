"""`RunConfig`: everything that determines a training run, checked."""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch

from vaentropy.data import Dataset
from vaentropy.data import load as load_data
from vaentropy.errors import UsageError
from vaentropy.expectation import MonteCarlo
from vaentropy.training.schedules import as_schedule
from vaentropy.training.settings import check_settings
from vaentropy.vae import VAE, vae0, vae1, vae2, vae3

__all__ = ["DTYPES", "RunConfig"]

# Nothing from a file decides which code runs: a name in a file chooses from these.
FAMILIES: Mapping[str, Callable[[tuple[int, ...], int, tuple[int, ...]], VAE]] = {
    "vae0": vae0,
    "vae1": vae1,
    "vae2": vae2,
    "vae3": vae3,
}
EXPECTED = {
    str: "text",
    str | None: "text or nothing",
    int: "a whole number",
    int | None: "a whole number or nothing",
    float: "a number",
    float | None: "a number or nothing",
    tuple[int, ...]: "a list of whole numbers",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run.

    Attributes:
        data: name of a data set (`vaentropy.data.names()`) or path of a .npy file.
        data_folder: where the files of a named data set are.
        held_out: fraction held out; None takes the data set's own.
        model: vae0, vae1, vae2 or vae3.
        latent_dim: number of latents.
        hidden: widths of the encoder's layers; the decoder's are these in reverse.
        epochs: as for `fit`, like all that follows down to `beta`.
        batch_size: points per step.
        learning_rate: of Adam.
        schedule: "one_cycle" or "constant".
        variances: "analytic" or "learned".
        clip_norm: largest norm of the gradient, or None.
        beta: constant weight of the KL term.
        num_samples: Monte Carlo samples per point in a training step.
        evaluation_samples: Monte Carlo samples per point in evaluations.
        seed: of the split, initial weights, batch order and noise.
        device: "cpu", "cuda", …; "auto" takes a GPU where there is one.
        dtype: "float32" or "float64".
        threads: of the CPU; None takes PyTorch's number, or one where steps are too small to share.
    """

    data: str = "digits"
    data_folder: str | None = None
    held_out: float | None = None
    model: str = "vae1"
    latent_dim: int = 2
    hidden: tuple[int, ...] = (50, 50)
    epochs: int = 500
    batch_size: int = 200
    learning_rate: float = 5e-3
    schedule: str = "one_cycle"
    variances: str = "analytic"
    clip_norm: float | None = None
    beta: float = 1.0
    num_samples: int = 1
    evaluation_samples: int = 16
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        _choice("model", self.model, FAMILIES)
        _choice("dtype", self.dtype, DTYPES)
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads={self.threads} given, expected a whole number of at least 1")
        check_settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            variances=self.variances,
            clip_norm=self.clip_norm,
        )
        as_schedule(self.beta)
        MonteCarlo(self.num_samples)
        MonteCarlo(self.evaluation_samples)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The inverse of `dataclasses.asdict`.

        Raises:
            UsageError: an unknown key, or a value of the wrong type.
        """
        hints = get_type_hints(cls)
        known = [f.name for f in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise UsageError(f"unknown setting {name!r}{_nearest(str(name), known)}")
            kind = hints[name]
            if not _fits(value, kind):
                raise UsageError(f"setting {name}: {value!r} given, expected {EXPECTED[kind]}")
        # YAML has lists, no tuples.
        tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**tuples)

    def build(self, data_shape: tuple[int, ...]) -> VAE:
        """The untrained model, its initial weights drawn from the seed; on the CPU, in the run's dtype."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return FAMILIES[self.model](data_shape, self.latent_dim, self.hidden).to(DTYPES[self.dtype])

    def load_data(self) -> Dataset:
        """The data set, split by the seed."""
        folder, dtype = self.data_folder, DTYPES[self.dtype]
        return load_data(self.data, folder=folder, held_out=self.held_out, seed=self.seed, dtype=dtype, stream=False)


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"


def _choice(what: str, value: str, allowed: Mapping[str, Any]) -> None:
    if value not in allowed:
        raise UsageError(f"{what}={value!r} given, expected one of {', '.join(allowed)}{_hint(value, allowed)}")


def _hint(value: str, allowed: Collection[str]) -> str:
    close = difflib.get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fits(value: Any, kind: Any) -> bool:
    if kind == tuple[int, ...]:
        return isinstance(value, list | tuple) and all(_fits(item, int) for item in value)
    if isinstance(value, bool):
        return False
    # A whole number is a number.
    return isinstance(value, kind | int) if kind in (float, float | None) else isinstance(value, kind)
