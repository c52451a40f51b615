"""Gaussian variational autoencoders whose ELBO is a sum of three entropies: train, evaluate, calibrate.

The names below are loaded at their first use, so that `vaentropy --help` does not wait for PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "VAE": "vaentropy.vae",
    "Bernoulli": "vaentropy.likelihoods",
    "Diagnosis": "vaentropy.diagnosis",
    "Evaluation": "vaentropy.results",
    "Gaussian": "vaentropy.likelihoods",
    "History": "vaentropy.training",
    "LinearVAE": "vaentropy.linear",
    "MonteCarlo": "vaentropy.expectation",
    "Poisson": "vaentropy.likelihoods",
    "calibrate": "vaentropy.calibration",
    "diagnose": "vaentropy.diagnosis",
    "evaluate": "vaentropy.evaluation",
    "fit": "vaentropy.training",
    "fit_replicates": "vaentropy.training",
    "from_functions": "vaentropy.model",
    "given": "vaentropy.data.conditioned",
    "load": "vaentropy.runs",
    "log_likelihood": "vaentropy.importance",
    "prune": "vaentropy.pruning",
    "select": "vaentropy.selection",
    "vae0": "vaentropy.families",
    "vae1": "vaentropy.families",
    "vae2": "vaentropy.families",
    "vae3": "vaentropy.families",
}

if TYPE_CHECKING:
    from vaentropy.calibration import calibrate as calibrate
    from vaentropy.data.conditioned import given as given
    from vaentropy.diagnosis import Diagnosis as Diagnosis
    from vaentropy.diagnosis import diagnose as diagnose
    from vaentropy.evaluation import evaluate as evaluate
    from vaentropy.expectation import MonteCarlo as MonteCarlo
    from vaentropy.families import vae0 as vae0
    from vaentropy.families import vae1 as vae1
    from vaentropy.families import vae2 as vae2
    from vaentropy.families import vae3 as vae3
    from vaentropy.importance import log_likelihood as log_likelihood
    from vaentropy.likelihoods import Bernoulli as Bernoulli
    from vaentropy.likelihoods import Gaussian as Gaussian
    from vaentropy.likelihoods import Poisson as Poisson
    from vaentropy.linear import LinearVAE as LinearVAE
    from vaentropy.model import from_functions as from_functions
    from vaentropy.pruning import prune as prune
    from vaentropy.results import Evaluation as Evaluation
    from vaentropy.runs import load as load
    from vaentropy.selection import select as select
    from vaentropy.training import History as History
    from vaentropy.training import fit as fit
    from vaentropy.training import fit_replicates as fit_replicates
    from vaentropy.vae import VAE as VAE


# Subpackages and modules that hold further public names.
_MODULES = (
    "adapters",
    "data",
    "diagnosis",
    "distributions",
    "engines",
    "entropy",
    "errors",
    "expectation",
    "integrations",
    "loggers",
    "networks",
    "runs",
    "selection",
    "studies",
    "training",
)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"vaentropy.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'vaentropy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
