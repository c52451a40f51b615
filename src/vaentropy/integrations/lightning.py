"""`EntropyCallback`: ELBO, entropies and gap of the validation data in a Lightning Trainer."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vaentropy._typing import Tensor
from vaentropy.checks import require_instance
from vaentropy.diagnosis.latents import num_active
from vaentropy.errors import UsageError, shown
from vaentropy.evaluation import Accumulator
from vaentropy.expectation import Expectation, MonteCarlo
from vaentropy.gathered import merged, of_rank
from vaentropy.integrations._trainers import chosen, dataloaders_of, for_trainers, padding_of
from vaentropy.loggers.logger import terms
from vaentropy.model import LatentVariableModel
from vaentropy.passes import bound_pair
from vaentropy.results import Evaluation

__all__ = ["EntropyCallback"]

logger = logging.getLogger(__name__)


class EntropyCallback:
    """A callback that evaluates the model on the batches of each validation and test, and logs what it finds.

    It is a Callback of whichever of `lightning` and `pytorch_lightning` is imported when it is made (of both, if both
    are), so import the Trainer's package first. Logged are `val/elbo`, `val/reconstruction`, `val/kl`,
    `val/encoder_entropy`, `val/prior_entropy`, `val/decoder_entropy`, `val/entropy_sum`, `val/gap`, `val/prior_gap`,
    `val/decoder_gap`, `val/relative_gap` and `val/active_latents`, by `LightningModule.log`, so that ModelCheckpoint
    and EarlyStopping can watch them; `trainer.test` logs the same under `test/`. Of several dataloaders they are
    `val/0/elbo`, `val/1/elbo`, or with the keys of a dict of dataloaders in the place of the numbers.

    The numbers are those of `vaentropy.evaluate` for the same batches. The module's mode, BatchNorm statistics and the
    global random number generators stay as they are, and each epoch has the same draws, so that epochs can be compared.
    The batches of the sanity check are left out.

    With several processes ("ddp" and others that keep whole models), sums of all are merged exactly; what a
    DistributedSampler repeats so that all processes have as many rows is left out, and any other sampler's repetitions
    are counted. Of `MonteCarlo` and `Antithetic` each process has its own draws; with `Sobol`, `Frozen` or
    `GaussHermite` the numbers are the same whatever the number of processes.

    Args:
        bind: (module, batch) to (model, x): the model with `posterior(x)`, `prior()` and `likelihood(z)` for this
            batch, and its data (B, *data_shape), one row for each of the dataset's.
        expectation: how to average over the posterior.
        dataloaders: which ones to evaluate, by index or by key; None means all.
        prefix: stands in front of all names; two callbacks of one Trainer need different ones.
        missing: as for `evaluate`.
        log_jacobian: as for `evaluate`; `val/data_elbo` and `val/bits_per_dim` are then logged too.
        mode: as for `evaluate`.

    Attributes:
        evaluations: of the last validation or test, by the name in front of their metrics, such as "val" or "val/0".
        history: of the validations of `fit`, a mapping with "epoch", "step" and all that was logged for each. It is in
            the Trainer's checkpoints, and goes on where `fit(..., ckpt_path=...)` does.

    Raises:
        MissingExtraError: neither lightning nor pytorch_lightning is installed.
        UsageError: an argument has a wrong value; during validation: `bind` returned something else than a pair, or
            none of `dataloaders` is there.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> "EntropyCallback":
        """Of the Trainer's own class of callbacks, without which it takes none."""
        return object.__new__(for_trainers(cls))

    def __init__(
        self,
        bind: Callable[[Any, Any], tuple[LatentVariableModel, Tensor]],
        *,
        expectation: Expectation = MonteCarlo(16),
        dataloaders: Sequence[int | str] | None = None,
        prefix: str = "",
        missing: str = "error",
        log_jacobian: Tensor | np.ndarray | float = 0.0,
        mode: str = "eval",
    ):
        require_instance("bind", bind, Callable, "a function of module and batch that returns (model, x)")  # type: ignore[arg-type]
        require_instance("prefix", prefix, str, "the beginning of the names of metrics")
        _check_dataloaders(dataloaders)
        self.bind, self.expectation, self.dataloaders, self.prefix = bind, expectation, dataloaders, prefix
        self._how: dict[str, Any] = {"missing": missing, "log_jacobian": log_jacobian, "mode": mode, "bind": bind}
        # Here, not after the first epoch.
        Accumulator(None, expectation=expectation, **self._how)
        self.evaluations: dict[str, Evaluation] = {}
        self.history: list[dict[str, float]] = []
        self._epoch: _Epoch | None = None
        self._warned = False

    @property
    def evaluation(self) -> Evaluation | None:
        """Of the first dataloader of the last validation or test; None before it."""
        return next(iter(self.evaluations.values()), None)

    @property
    def state_key(self) -> str:
        """Under which checkpoints keep the history: the same for both packages."""
        return f"EntropyCallback{{'prefix': {self.prefix!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """The history, plain numbers, for the Trainer's checkpoint."""
        return {"history": [dict(row) for row in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the history of a checkpoint."""
        self.history = [dict(row) for row in state_dict["history"]]

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, unless this is the sanity check."""
        self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self._begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self._count(pl_module, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        self._count(pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Read out, log and remember."""
        self._end(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Read out and log."""
        self._end(trainer, pl_module)

    def _begin(self, trainer: Any, module: Any, stage: str) -> None:
        self._epoch = None
        if not trainer.sanity_checking:
            expectation = of_rank(self.expectation, trainer.global_rank)
            loaders = dataloaders_of(trainer, stage)
            names = chosen(list(loaders), self.dataloaders)
            stem = self.prefix + stage
            self._epoch = _Epoch(
                {i: f"{stem}/{name}" if len(loaders) > 1 else stem for i, name in names.items()},
                {i: Accumulator(module, expectation=expectation, **self._how) for i in names},
                list(loaders.values()),
            )

    def _count(self, module: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._epoch is None or dataloader_idx not in self._epoch.accumulators:
            return
        accumulator = self._epoch.accumulators[dataloader_idx]
        with accumulator.running():
            model, x = bound_pair(self.bind(module, batch))
            padding, num_rows = padding_of(self._epoch.loaders[dataloader_idx], batch_idx)
            if padding and len(x) != num_rows:
                self._warn(num_rows, len(x))
                padding = 0
            accumulator.count(model, x, padding=padding)

    def _warn(self, num_rows: int, bound_rows: int) -> None:
        if not self._warned:
            logger.warning(
                "bind made %d rows of a batch of %d: which of them a DistributedSampler repeats cannot be told, and "
                "they are counted",
                bound_rows,
                num_rows,
            )
        self._warned = True

    def _end(self, trainer: Any, module: Any) -> None:
        epoch, self._epoch = self._epoch, None
        if epoch is None:
            return
        evaluations = {}
        # Each process comes by here for each dataloader, whether or not it has data of it.
        for index, accumulator in epoch.accumulators.items():
            evaluation = accumulator.evaluation() if accumulator.num_points else None
            if trainer.world_size > 1:
                evaluation = merged(evaluation, self.expectation, trainer.strategy.all_gather, module.device)
            if evaluation is not None:
                evaluations[epoch.names[index]] = evaluation
        self.evaluations = evaluations
        named = {f"{name}/{metric}": x for name, e in evaluations.items() for metric, x in _metrics(e).items()}
        # All processes have the same numbers; sync_dist spares a warning.
        module.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        if trainer.state.fn == "fit":
            self.history.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **named})

    def __reduce__(self) -> tuple[Any, ...]:
        """Trainers that start processes send callbacks there; the class made for the Trainer has no name of its own."""
        named = next(cls for cls in type(self).__mro__ if "_derived_from" not in vars(cls))
        return _blank, (named,), self.__dict__


class _Epoch:
    """What is added up in one validation: names, accumulators by index, and all dataloaders."""

    def __init__(self, names: dict[int, str], accumulators: dict[int, Accumulator], loaders: list[Any]):
        self.names, self.accumulators, self.loaders = names, accumulators, loaders


def _blank(cls: type[EntropyCallback]) -> EntropyCallback:
    return cls.__new__(cls)


def _metrics(e: Evaluation) -> dict[str, float]:
    """What is logged of an evaluation: its terms, and how many latents are active where each has a KL of its own."""
    active = {} if e.kl_per_latent is None else {"active_latents": num_active(e.kl_per_latent)}
    return {**terms(e), **active}


def _check_dataloaders(dataloaders: Any) -> None:
    if dataloaders is None:
        return
    each = dataloaders if isinstance(dataloaders, list | tuple) else ()
    if not each or any(isinstance(one, bool) or not isinstance(one, int | str) for one in each):
        raise UsageError(f"dataloaders={shown(dataloaders)} given, expected indices or keys in a list, or None for all")
