"""How many latents the data of given settings support."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vaentropy.checks import require_instance
from vaentropy.config import RunConfig
from vaentropy.data import Coding
from vaentropy.engines import Engine, engine_or_here
from vaentropy.runs.build import build_model, draw_model, load_own, num_threads, torch_device
from vaentropy.selection import Selection
from vaentropy.selection import select as select_latents
from vaentropy.selection.select import check_candidates
from vaentropy.vae import VAE

__all__ = ["select"]


def select(
    config: RunConfig,
    latent_dims: Iterable[int] = range(1, 7),
    *,
    linear: bool = False,
    num_seeds: int | None = None,
    num_errors: float = 2.0,
    engine: Engine | None = None,
    progress: bool | None = None,
) -> Selection:
    """Load data as `train` does, train a candidate for each number of latents, and compare them; no folder is left.

    Args:
        config: what to train, but for its `latent_dim`; the data's held-out part decides.
        latent_dims, num_seeds, num_errors, engine, progress: as for `vaentropy.select`.
        linear: take the linear VAE in closed form in place of the settings' model.

    Raises:
        VaentropyError: a setting or the data cannot be used.
    """
    require_instance("config", config, RunConfig, "a RunConfig")
    latent_dims = check_candidates(latent_dims, least=0 if linear else 1)
    if not engine_or_here(engine).other_machines:
        torch_device(config.device)
    data = load_own(config)
    if linear:
        options = {"num_seeds": num_seeds, "num_errors": num_errors, "engine": engine}
        return select_latents(data, latent_dims, model="linear", seed=config.seed, **options)

    settings = config.settings()
    # Those of the run alone; `select` refuses the others that it does not take.
    for name in ("seed", "evaluate_every", *(() if config.patience else ("patience",))):
        del settings[name]
    largest = replace(config, latent_dim=latent_dims[-1])
    with num_threads(config, build_model(largest, data.data_shape, data.coding)):
        selection = select_latents(
            data,
            latent_dims,
            model=_Drawn(config, data.data_shape, data.coding),
            engine=engine,
            num_seeds=num_seeds,
            seed=config.seed,
            num_errors=num_errors,
            progress=progress,
            **settings,
        )
    return replace(selection, model=config.model)


@dataclass(frozen=True)
class _Drawn:
    """Makes models of the settings for a number of latents; can be sent to another process."""

    config: RunConfig
    data_shape: tuple[int, ...]
    coding: Coding | None

    def __call__(self, latent_dim: int) -> VAE:
        model = draw_model(replace(self.config, latent_dim=latent_dim), self.data_shape, self.coding)
        return model.to(torch_device(self.config.device))
