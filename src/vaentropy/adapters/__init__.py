"""Models of other libraries as three-method models; none of those libraries is imported here."""

from vaentropy.adapters.diffusers import from_diffusers
from vaentropy.adapters.pyro import from_pyro
from vaentropy.adapters.pythae import from_pythae
from vaentropy.adapters.pytorch_vae import from_pytorch_vae
from vaentropy.adapters.scvi import from_scvi
from vaentropy.adapters.sigma_vae import from_sigma_vae

__all__ = ["from_diffusers", "from_pyro", "from_pythae", "from_pytorch_vae", "from_scvi", "from_sigma_vae"]
