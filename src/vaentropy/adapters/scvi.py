"""scVI of scvi-tools (https://github.com/scverse/scvi-tools), read from its sources, version 1.4."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Size, nn
from torch.distributions import Distribution, Normal, constraints

from vaentropy._typing import Tensor
from vaentropy.adapters._foreign import is_of
from vaentropy.checks import require_count
from vaentropy.distributions import to_float64
from vaentropy.errors import ModelError, UnsupportedError, UsageError, shown
from vaentropy.model import placement

__all__ = ["from_scvi"]

EXPECTED = "SCVI or LinearSCVI of scvi.model"
EVALUABLE = frozenset({"SCVI", "LinearSCVI"})
MODULES = frozenset({"VAE", "LDVAE"})
REFUSED = {
    "SCANVI": "it has a second layer of latents, and sums over the cell types",
    "TOTALVI": "it has proteins beside genes, with latents of their own for the background of these",
    "MULTIVI": "it has several modalities, and its posterior mixes those of each",
    "PEAKVI": "its likelihood has a factor that its encoder reads off the same cell, beside the one of z",
    "AUTOZI": "it has latents of the genes, beside those of the cells",
    "CondSCVI": "its loss weighs cell types, and its prior may be a mixture of posteriors",
    "JaxSCVI": "its networks are made with JAX, not with torch",
}
# What a module's ELBO is made of; a class of the user's own that has one of these may be another model.
OWN_MEANING = ("inference", "_regular_inference", "generative", "loss")
# Names of scvi-tools for the entries of its minibatches, and for what its modules return.
X, BATCH, Z, LIBRARY = "X", "batch", "z", "library"
WITHOUT_COUNTS = "latent_posterior_parameters"  # minified data


class _Counts(Distribution):
    """A distribution of counts of scvi-tools, in float64, with one factor per gene.

    Theirs says nothing of its shape. In float32 log Γ(x + θ) - log Γ(θ) has lost its digits where θ is large.
    """

    def __init__(self, counts: Any):
        names = [name for name in ("mu", "theta", "zi_logits") if hasattr(counts, name)]
        self.counts = type(counts)(**{name: to_float64(getattr(counts, name)) for name in names})
        super().__init__(self.counts.mu.shape, validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        return {}

    @property
    def mean(self) -> Tensor:
        return self.counts.mean

    @property
    def variance(self) -> Tensor:
        return self.counts.variance

    def log_prob(self, value: Tensor) -> Tensor:
        return self.counts.log_prob(to_float64(value))

    def sample(self, sample_shape: Size | Sequence[int] = ()) -> Tensor:
        # scvi-tools draws in inference mode, and its tensors cannot be used under gradients; a copy can.
        return self.counts.sample(Size(sample_shape)).clone()


class _OneBatch(nn.Module):
    """The model of one minibatch, with its batch indices, covariates and library sizes."""

    module: Any

    def __init__(self, module: nn.Module, tensors: Mapping[str, Any]):
        super().__init__()
        self.module, self.tensors = module, tensors
        self.library: Tensor | None = None

    def posterior(self, x: Tensor) -> Distribution:
        # full_forward_pass: from the counts, whatever else has been kept of them.
        given = self.module._get_inference_input({**self.tensors, X: x}, full_forward_pass=True)
        inferred = self.module.inference(**given)
        q, of_library = inferred["qz"], inferred["ql"]
        if of_library is None:
            self.library = inferred[LIBRARY]
            return q
        mean, stddev = torch.cat([q.loc, of_library.loc], 1), torch.cat([q.scale, of_library.scale], 1)
        return Normal(mean, stddev, validate_args=False)

    def prior(self) -> Distribution:
        batch = self.tensors[BATCH]
        _, dtype = placement(self.module)
        zeros = torch.zeros(len(batch), self.module.n_latent, dtype=dtype, device=batch.device)
        if self.module.use_observed_lib_size:
            return Normal(zeros[0], torch.ones_like(zeros[0]))
        mean, variance = self.module._compute_local_library_params(batch)
        return Normal(torch.cat([zeros, mean], 1), torch.cat([torch.ones_like(zeros), variance.sqrt()], 1))

    def likelihood(self, z: Tensor) -> Distribution:
        library = self.library
        if not self.module.use_observed_lib_size:
            z, library = z.split([self.module.n_latent, 1], 1)
        elif library is None:
            self.posterior(self.tensors[X])
            library = self.library
        # For a logistic normal; the posterior and the prior are those of its logarithm.
        latents = {Z: self.module.z_encoder.z_transformation(z), LIBRARY: library}
        of_x = self.module.generative(**self.module._get_generative_input(self.tensors, latents))["px"]
        return _Counts(of_x) if hasattr(of_x, "theta") else of_x


class _ScviModel(nn.Module):
    """The networks, for their device, dtype and mode; each minibatch makes a model of its own."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def bind(self, tensors: Mapping[str, Any]) -> tuple[_OneBatch, Tensor]:
        """The model of one minibatch, and its counts (B, genes)."""
        device, _ = placement(self.module)
        there = {name: each.to(device) for name, each in tensors.items() if isinstance(each, Tensor)}
        return _OneBatch(self.module, there), there[X]

    def _unbound(self) -> NoReturn:
        raise UsageError(
            "a model of scvi-tools given without its minibatches, expected bind, which says each one's context; "
            "call evaluate(**from_scvi(model))"
        )

    def posterior(self, x: Tensor) -> Distribution:
        self._unbound()

    def prior(self) -> Distribution:
        self._unbound()

    def likelihood(self, z: Tensor) -> Distribution:
        self._unbound()


def _module_of(model: object) -> nn.Module:
    """The networks of a model that is known."""
    if isinstance(model, type):
        raise ModelError(f"the class {model.__name__} given, expected {EXPECTED} made with adata, or trained")
    name = type(model).__name__
    nearest = next((cls.__name__ for cls in type(model).__mro__ if is_of(cls, "scvi")), None)
    if nearest is None or isinstance(model, nn.Module):
        raise ModelError(f"{name} given, expected {EXPECTED}, not its module")
    if nearest not in EVALUABLE:
        reason = REFUSED.get(nearest, "what its latents and its likelihood are is not known here")
        raise UnsupportedError(f"{name} of scvi-tools given: {reason}; expected {EXPECTED}")
    module: object = getattr(model, "module", None)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} given, which has no networks yet, expected {EXPECTED} made with adata, or trained")
    for cls in type(module).__mro__:
        if is_of(cls, "scvi") and cls.__name__ in MODULES:
            return module
        own = [method for method in OWN_MEANING if method in vars(cls)]
        if own:
            raise UnsupportedError(
                f"{name} of scvi-tools given: {cls.__name__}.{own[0]} may be another model's; expected {EXPECTED}"
            )
    raise UnsupportedError(f"{name} of scvi-tools given, whose module is {type(module).__name__}; expected {EXPECTED}")


def _loader_of(model: Any, adata: Any, indices: Any, batch_size: int | None) -> Any:
    """scvi-tools' own minibatches of these cells, in their order."""
    if adata is None and model.adata is None:
        raise UsageError(f"no adata given for {type(model).__name__}, which holds none; give adata=...")
    if adata is not None and not hasattr(adata, "n_obs"):
        raise UsageError(f"adata={shown(adata)} given, expected AnnData that the model was set up for")
    if getattr(model, "minified_data_type", None) == WITHOUT_COUNTS:
        raise UnsupportedError(
            f"{type(model).__name__} given whose data are minified: without counts there is no ELBO; load the model "
            "with the full adata"
        )
    if batch_size is not None:
        require_count("batch_size", batch_size)
    cells = model._validate_anndata(adata)
    if indices is not None:
        indices = _checked(np.asarray(indices), cells.n_obs)
    return model._make_data_loader(adata=cells, indices=indices, batch_size=batch_size)


def _checked(indices: np.ndarray, num_cells: int) -> np.ndarray:
    """Numbers of cells, or one bool for each cell."""
    given = f"indices={shown(indices)} given"
    if indices.ndim != 1 or indices.dtype.kind not in "iub" or not indices.size:
        raise UsageError(f"{given}, expected whole numbers of cells, or one bool for each")
    if indices.dtype.kind == "b":
        if len(indices) != num_cells:
            raise UsageError(f"{given}, {len(indices)} of them, expected one bool for each of {num_cells} cells")
    elif indices.min() < -num_cells or indices.max() >= num_cells:
        raise UsageError(f"{given} for {num_cells} cells, expected numbers from 0 to {num_cells - 1}")
    return indices


def from_scvi(
    model: object,
    adata: Any = None,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """scVI for `evaluate(**from_scvi(model))`: the model, scvi-tools' minibatches, and what binds each to its context.

    Batches, labels, covariates, size factors and library sizes go through scvi-tools' own code, its minimum of 1e-4 for
    the posterior's variances too. The ELBO is `get_elbo` but for its draws, that is minus the loss for kl_weight 1, in
    nats per cell. The likelihood is that of the counts, or of what the model was set up with: "normal" in closed form,
    "poisson" with its pseudo entropy, "nb" and "zinb" with an entropy by Monte Carlo, which the result flags; the gap
    identity holds on average, but the theorem of the three entropies is not stated for these two. The library size is a
    latent, the last one, with the prior of its batch where use_observed_lib_size=False, else part of the context. With
    latent_distribution="ln" the latents are those before the softmax.

    Not only for `evaluate`: `log_likelihood` and `diagnose` take the same three.

    The model is neither copied nor changed.

    Args:
        model: SCVI or LinearSCVI, or a class derived from one whose module has the same ELBO.
        adata: the cells, set up as the model's own; by default those.
        indices: which of them, (M,), as `model.validation_indices` holds them; by default all.
        batch_size: cells per minibatch; by default that of scvi-tools.

    Returns:
        The arguments `model`, `data` and `bind`.

    Raises:
        ModelError: not a model of scvi-tools, or one without networks.
        UnsupportedError: another model of scvi-tools, with the reason, or minified data.
        UsageError: adata, indices or batch_size of another kind.
    """
    known = _ScviModel(_module_of(model))
    return {"model": known, "data": _loader_of(model, adata, indices, batch_size), "bind": known.bind}
