"""`TrainingState`: everything that training changes, as it is taken down in checkpoints and put back from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from vaentropy._typing import Tensor
from vaentropy.errors import DataError, shown
from vaentropy.training.step import RunningSums
from vaentropy.vae import VAE

__all__ = ["Progress", "Snapshot", "TrainingState"]


ADAM = ("step", "exp_avg", "exp_avg_sq")  # what it keeps for each parameter


class Snapshot(NamedTuple):
    """A state as it was at one moment: tensors on the CPU, sharing no memory with the state, and JSON values."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass
class Progress:
    """Where training is.

    Attributes:
        step: steps done.
        rows: rows of the history made, one per finished epoch.
        learning_rate_factor: below 1 after rollbacks.
        rollbacks: how often training went back because it had diverged.
        first_elbo: running ELBO of the first epoch; None before its end.
        best_elbo: best held-out ELBO so far; None before the first evaluation.
        best_step: the step it was seen at.
        evaluations_since_best: evaluations of the held-out data since then.
        finishing: the last step is done; final variances and evaluations may be missing.
        variances_set: variances are final.
        restored_epoch: epoch of the best weights, where these were put back; None where the last ones stay.
        stopped: why training ended before its last epoch; None where it has not.
        finished: nothing is left to do.
        seconds: time spent, over all interruptions.
    """

    step: int = 0
    rows: int = 0
    learning_rate_factor: float = 1.0
    rollbacks: int = 0
    first_elbo: float | None = None
    best_elbo: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    finishing: bool = False
    variances_set: bool = False
    restored_epoch: int | None = None
    stopped: str | None = None
    finished: bool = False
    seconds: float = 0.0


@dataclass
class TrainingState:
    """A model in training, with all that its next step depends on.

    Attributes:
        model: changed in place by steps.
        optimizer: of its parameters.
        noise: generator of the nodes.
        order: generator of a DataLoader's own, if it has one.
        sums: of the epoch so far.
        progress: where training is.
    """

    model: VAE
    optimizer: torch.optim.Optimizer
    noise: torch.Generator
    order: torch.Generator | None = None
    sums: RunningSums = field(default_factory=RunningSums)
    progress: Progress = field(default_factory=Progress)

    def snapshot(self, over: Snapshot | None = None) -> Snapshot:
        """A copy of all of it; of torch's global generators too, from which dropout draws.

        Args:
            over: an older snapshot that is no longer needed, whose memory is used again.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
        tensors |= {f"generator.{name}": state for name, state in self._generator_states().items()}
        if self.sums.total is not None:
            tensors["terms"] = self.sums.total
        old = {} if over is None else over.tensors
        copies = {name: _copy(tensor.detach(), old.get(name)) for name, tensor in tensors.items()}
        return Snapshot(copies, {**vars(self.progress), "num_points": self.sums.num_points})

    def restore(self, snapshot: Snapshot, where: str = "the snapshot") -> None:
        """Put all of it back, in place.

        Raises:
            DataError: it is not a snapshot of such a model.
        """
        tensors, numbers = snapshot
        try:
            values = {name: _checked(name, numbers[name]) for name in vars(Progress())}
            num_points = _checked("step", numbers["num_points"])
            total = tensors["terms"] if num_points else tensors.get("terms")
            size = RunningSums.size(math.prod(self.model.latent_shape))
            if total is not None and (total.shape != (size,) or not total.is_floating_point()):
                raise ValueError(f"terms of shape {tuple(total.shape)}")
            self.model.load_state_dict(_below("model.", tensors))
            self._restore_optimizer(tensors)
            self._restore_generators(tensors)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(f"no {error}".split() if isinstance(error, KeyError) else str(error).split())
            raise DataError(
                f"{where} does not fit this model ({reason}); go on with the model it was made of"
            ) from error
        device = next(self.model.parameters()).device
        self.sums = RunningSums(None if total is None else total.to(device, copy=True), num_points)
        vars(self.progress).update(values)

    def restore_weights(self, snapshot: Snapshot) -> None:
        """Put back weights and optimiser alone: where training is, stays."""
        self.model.load_state_dict(_below("model.", snapshot.tensors))
        self._restore_optimizer(snapshot.tensors)

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            if not index.isdecimal() or key not in ADAM:
                raise ValueError(f"optimiser state {name}")
            states.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, values in states.items():
            expected = (
                {} if index >= len(parameters) else {"step": (), **dict.fromkeys(ADAM[1:], parameters[index].shape)}
            )
            if {key: tuple(value.shape) for key, value in values.items()} != expected:
                raise ValueError(f"optimiser state {index} is of other parameters")
            for key in ADAM[1:]:
                # A copy in the order in memory that the parameter has, which a fused optimiser takes for granted.
                values[key] = torch.empty_like(parameters[index], dtype=values[key].dtype).copy_(values[key])
            values["step"] = values["step"].clone()
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _generator_states(self) -> dict[str, Tensor]:
        states = {"noise": self.noise.get_state(), "cpu": torch.get_rng_state()}
        if self.order is not None:
            states["order"] = self.order.get_state()
        if self.noise.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.noise.device)
        return states

    def _restore_generators(self, tensors: Mapping[str, Tensor]) -> None:
        states = _below("generator.", tensors)
        self.noise.set_state(states["noise"])
        torch.set_rng_state(states["cpu"])
        if self.order is not None:
            self.order.set_state(states["order"])
        if self.noise.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.noise.device)


def _copy(tensor: Tensor, over: Tensor | None) -> Tensor:
    if over is not None and over.shape == tensor.shape and over.dtype == tensor.dtype:
        return over.copy_(tensor)
    return tensor.to("cpu", copy=True).contiguous()


# Types of the numbers that are None at the beginning.
KINDS = {"stopped": str, "first_elbo": float, "best_elbo": float, "restored_epoch": int}


def _checked(name: str, value: Any) -> Any:
    """A number of the progress, of its type.

    Raises:
        ValueError: it is something else.
    """
    default = vars(Progress())[name]
    if value is None and default is None:
        return None
    kind = KINDS.get(name, type(default))
    fits = isinstance(value, int | float if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is int and value < 0):  # type: ignore[operator]
        raise ValueError(f"{name} is {shown(value)}")
    return value


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
