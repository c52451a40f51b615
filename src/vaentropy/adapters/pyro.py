"""Pairs of model and guide of Pyro (https://pyro.ai), as of version 1.9."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution, Independent, Normal

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.errors import MissingExtraError, ModelError, UnsupportedError, UsageError, nearest, shown
from vaentropy.model import LatentVariableModel

__all__ = ["from_pyro"]

Site = Mapping[str, Any]


def _poutine() -> Any:
    try:
        from pyro import poutine
    except ImportError:
        raise MissingExtraError("pyro-ppl", "pyro") from None
    return poutine


def _modules_in(function: object) -> list[nn.Module]:
    """The module that a function is, or is a method of."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    return [owner] if isinstance(owner, nn.Module) else []


def _sample_sites(trace: Any) -> dict[str, Site]:
    """The sites of a trace that have a probability of their own."""
    from pyro.poutine.util import site_is_subsample

    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {
        name: site
        for name, site in sites.items()
        if not site_is_subsample(site) and not site["infer"].get("_deterministic")
    }


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _require_site(sites: Mapping[str, Site], option: str, name: str, where: str) -> Site:
    if name not in sites:
        given = f"{option}={shown(name)} given, and the {where} has the sites {_listed(list(sites))}"
        raise UsageError(f"{given}; {nearest(name, sites)}name one of these")
    return sites[name]


def _require_plain(name: str, site: Site) -> None:
    """Refuse a site some of whose terms do not count."""
    distribution, mask = site["fn"], site["mask"]
    while type(distribution).__name__ in ("Independent", "MaskedDistribution"):
        if type(distribution).__name__ == "MaskedDistribution":
            mask = distribution._mask if mask is None or mask is True else mask
        distribution = distribution.base_dist
    if mask is not None and mask is not True:
        raise UnsupportedError(
            f"site {name!r} has a mask, expected none: give NaN for values that are missing, and missing='ignore' to "
            "evaluate, or leave rows out by sample_weight"
        )


def _require_latent(name: str, site: Site) -> None:
    distribution, discrete = site["fn"], False
    with suppress(NotImplementedError):  # not every distribution knows its support
        discrete = distribution.support.is_discrete
    if discrete:
        raise UnsupportedError(f"site {name!r} is discrete, expected latents with a density")
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    if type(distribution).__name__ == "Delta":
        raise UnsupportedError(f"site {name!r} of the guide is a point, expected a distribution: a point has no ELBO")


def _require_drawn(name: str, site: Site, where: str) -> None:
    """Refuse a latent whose value is given: replayed, it would not become z."""
    if site["is_observed"]:
        raise UsageError(f"latent={shown(name)} given, which the {where} observes; leave its obs or condition out")


def _require_rows_first(latent: Site, observed: Site) -> None:
    """Refuse another plate in the place of the rows: where it has as many entries, shapes would not tell."""
    first = {name: -len(site["fn"].batch_shape) for name, site in (("z", latent), ("x", observed))}
    rows = [plate for plate in latent["cond_indep_stack"] if plate.dim == first["z"]]
    if any(plate in rows and plate.dim != first["x"] for plate in observed["cond_indep_stack"]):
        raise ModelError(
            f"site {observed['name']!r} has another plate to the left of {rows[0].name!r}, expected the rows to be its "
            f"first axis; give {rows[0].name!r} the leftmost dim of all plates"
        )


def _require_one_scale(sites: Sequence[Site]) -> None:
    """Refuse terms that weigh otherwise than each other; a factor that all share belongs to the sum over points."""
    scales = torch.cat([torch.as_tensor(site["scale"], dtype=torch.float64).flatten().cpu() for site in sites])
    if bool((scales != scales[0]).any()):
        raise UnsupportedError(
            f"the terms of {_listed([site['name'] for site in sites])} are scaled by {scales.min():g} to "
            f"{scales.max():g}, expected one factor: with a weight on the KL it is no ELBO; leave poutine.scale out, "
            "or give points their weights by sample_weight"
        )


def _of_all_rows(prior: Distribution) -> Distribution:
    """A normal prior without its axis of rows, where it is the same for all."""
    base = prior
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal) or not prior.batch_shape or not all(map(_rows_equal, (base.loc, base.scale))):
        return prior
    return Normal(base.loc[0], base.scale[0], validate_args=False)


def _rows_equal(parameter: Tensor) -> bool:
    return bool((parameter == parameter[:1]).all())


class _PyroModel(nn.Module):
    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        latent: str,
        observed: str,
        modules: Sequence[nn.Module],
    ):
        super().__init__()
        self.networks = nn.ModuleList(modules)
        # In a tuple, so that they are not found as modules a second time.
        self.functions = (model, guide)
        self.latent, self.observed = latent, observed
        self.given: tuple[Tensor, Any] | None = None  # the latest x, and the trace of the guide for it

    def posterior(self, x: Tensor) -> Distribution:
        trace = _poutine().trace(self.functions[1]).get_trace(x)
        sites = _sample_sites(trace)
        site = _require_site(sites, "latent", self.latent, "guide")
        _require_drawn(self.latent, site, "guide")
        if self.observed in sites and self.observed != self.latent:
            raise UsageError(
                f"the guide has the site {self.observed!r} of the data; give first the model, then the guide"
            )
        if ways := [name for name in sites if sites[name]["infer"].get("is_auxiliary")]:
            raise UnsupportedError(
                f"the guide draws {self.latent!r} by way of {_listed(ways)}, as autoguides do, expected a guide that "
                f"draws it from a distribution of x; write it with pyro.sample({self.latent!r}, ...)"
            )
        self._require_no_others(sites, [self.latent], "guide")
        _require_latent(self.latent, site)
        _require_plain(self.latent, site)
        self.given = (x, trace)
        return site["fn"]

    def _require_no_others(self, sites: Mapping[str, Site], known: Sequence[str], where: str) -> None:
        others = [name for name in sites if name not in known]
        latents = [name for name in others if not sites[name]["is_observed"]]
        if latents:
            raise UnsupportedError(
                f"the {where} has the latents {_listed(latents)} beside {self.latent!r}, expected one site; join them"
            )
        if others:
            raise UnsupportedError(
                f"the {where} observes {_listed(others)} beside {self.observed!r}, expected one site: the terms of the "
                "others would be left out"
            )

    def _of_model(self, z: Tensor | None) -> dict[str, Site]:
        """Sites of the model where the latent has the value z; None is the guide's draw."""
        if self.given is None:
            raise UsageError(
                "a model of Pyro asked for p(z) or p(x|z) before it has seen data; call posterior(x) first"
            )
        x, guide_trace = self.given
        poutine, trace = _poutine(), guide_trace.copy()
        if z is not None and len(z) != len(x):
            # The model takes x to observe it: rows come again, and plates are drawn anew.
            x, trace = x[torch.arange(len(z), device=x.device) % len(x)], poutine.util.prune_subsample_sites(trace)
        if z is not None:
            trace.nodes[self.latent] = {**trace.nodes[self.latent], "value": z}
        sites = _sample_sites(poutine.trace(poutine.replay(self.functions[0], trace=trace)).get_trace(x))
        latent, observed = (
            _require_site(sites, option, name, "model")
            for option, name in (("latent", self.latent), ("observed", self.observed))
        )
        self._require_no_others(sites, [self.latent, self.observed], "model")
        _require_drawn(self.latent, latent, "model")
        _require_rows_first(latent, observed)
        for name, site in ((self.latent, latent), (self.observed, observed)):
            _require_plain(name, site)
        self._require_observed(observed, x)
        _require_one_scale([latent, observed, guide_trace.nodes[self.latent]])
        return sites

    def _require_observed(self, site: Site, x: Tensor) -> None:
        if not site["is_observed"]:
            raise UsageError(f"observed={shown(self.observed)} given, which the model draws; give it obs=x")
        value = site["value"]
        if tuple(value.shape) != tuple(x.shape):
            raise ModelError(
                f"site {self.observed!r} observes values of shape {tuple(value.shape)} for data of shape "
                f"{tuple(x.shape)}; give the data in that shape"
            )
        if not bool((value == x).all()):
            raise ModelError(
                f"site {self.observed!r} observes other values than the data; transform the data before, not in the "
                "model: the ELBO is that of the values that are observed"
            )

    def prior(self) -> Distribution:
        return _of_all_rows(self._of_model(None)[self.latent]["fn"])

    def likelihood(self, z: Tensor) -> Distribution:
        return self._of_model(z)[self.observed]["fn"]


def from_pyro(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    latent: str = "z",
    observed: str = "x",
    modules: Sequence[nn.Module] = (),
) -> LatentVariableModel:
    """A model and its amortised guide of Pyro: q(z|x) is the guide's site, p(z) and p(x|z) are the model's.

    Both are called with x alone; `functools.partial` gives them more. They are traced, and the model is replayed with
    each z. Each of the two sites has one row per data point, the first axis of its batch (a plate of the data, the
    leftmost), and all else is taken for the event. Then the ELBO is minus the loss of `Trace_ELBO` or
    `TraceMeanField_ELBO`, per data point. A factor that all sites share, as a plate makes it that is subsampled,
    belongs to the sum over data points, not to one of them. Distributions that are not normal are averaged by
    `MonteCarlo` as anywhere here, flows and mixtures among them.

    p(x|z) is asked for with the x that `posterior` saw last, and may depend on it through context, not through the
    values that are observed. Parameters live in Pyro's parameter store as ever.

    Args:
        model: a function, method or module that observes x.
        guide: the same for the posterior.
        latent: the site of z, in both.
        observed: the site of x, in the model.
        modules: networks that they use, so that `evaluate` puts them into eval mode and data on their device; not
            needed where model and guide are modules, or methods of them.

    Raises:
        MissingExtraError: Pyro is not installed.
        UsageError: model or guide is no function, or, at the first call, a site does not exist or the latent one is
            observed.
        UnsupportedError: at the first call: several latents, a discrete one, a point, an autoguide, a further site that
            is observed, a mask, or terms that are scaled differently, so that it is no ELBO.
        ModelError: at the first call: the observed site holds something else than x, or its first axis is not the rows.
    """
    for name, function in (("model", model), ("guide", guide)):
        require_instance(name, function, Callable, "a function or a module")  # type: ignore[arg-type]
    for name, site in (("latent", latent), ("observed", observed)):
        require_instance(name, site, str, "the name of a site")
    _poutine()
    found = [*modules, *_modules_in(model), *_modules_in(guide)]
    return _PyroModel(model, guide, latent, observed, list(dict.fromkeys(found)))
