"""`Stack`: models of one architecture as one, whose weights are rows of shared tensors and take steps together."""

import copy
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vaentropy._typing import Bool, Float, Tensor
from vaentropy.errors import UsageError
from vaentropy.likelihoods import GaussianHead
from vaentropy.networks import keep_activations
from vaentropy.training.graphed import Graphed
from vaentropy.training.settings import Settings
from vaentropy.training.step import objective
from vaentropy.vae import VAE

__all__ = ["Stack", "flops", "memory"]

# Units of rounding, relative to their size, by which the loss of a model may differ in the stack and by itself.
AGREEMENT = 1e4
# As torch.nn.utils.clip_grad_norm_ has it.
CLIP_EPSILON = 1e-6
# What a model takes at its peak: so many times its parameters (in the stack, as of the last good epoch, gradients in
# pieces and as one, two moments of Adam's, the optimiser's own), and so many times what a forward pass keeps for the
# backward pass. With both a stack's estimate is 0.9 to 2.5 times what a process on the CPU takes for it.
COPIES = 7
PEAK = 3


class Stack:
    """R models whose steps are those of each alone, to rounding, in the time of a few.

    While they are in it, the models' parameters and buffers are views of rows of shared tensors; `release` gives them
    memory of their own again. The forward pass runs under `torch.vmap`, the backward pass is an ordinary one.

    Args:
        models: of one architecture, on one device and of one dtype, in the mode to train in; parameters that are not
            learned by gradient have none.
        settings: of each; they differ in learning rates at most.
    """

    def __init__(self, models: Sequence[VAE], settings: Sequence[Settings]):
        self.models, self._clip_norm = list(models), settings[0].clip_norm
        # Under torch.vmap nothing can be computed again; the numbers are the same.
        self._template = keep_activations(copy.deepcopy(models[0]))
        self._blocks = _blocks(models[0])
        self._tensors = [_gather(models, shapes) for shapes in self._blocks.values()]
        self._buffers = [torch.stack(list(each)) for each in zip(*(m.buffers() for m in models), strict=True)]
        self._saved = [tensor.clone() for tensor in (*self._tensors, *self._buffers)]
        self._slots = _slots(self._template, [name for shapes in self._blocks.values() for name in shapes])
        head = self._template.head
        if isinstance(head, GaussianHead) and isinstance(head.log_variance, nn.Module | nn.Parameter):
            head.gradient_unseen = isinstance(head.log_variance, nn.Module) or head.log_variance.requires_grad
        for name, tensor in zip(self._blocks, self._tensors, strict=True):
            tensor.requires_grad_(name != FIXED)
        self._optimize(settings)
        recorded = self._tensors[0].device.type == "cuda"
        self._gradients = Graphed(self._add_gradients, lambda: self._tensors) if recorded else self._add_gradients
        # Last of all: from here on somebody has to release them.
        try:
            for row, model in enumerate(self.models):
                self._point(model, row, (*self._tensors, *self._buffers))
        except BaseException:
            for row in range(len(self.models)):
                self.release(row)
            raise

    def _optimize(self, settings: Sequence[Settings]) -> None:
        """Adam, with a group for each run of rows whose learning rate is the same."""
        rates = {
            LEARNED: [each.learning_rate for each in settings],
            VARIANCES: [each.variance_learning_rate or each.learning_rate for each in settings],
        }
        self._groups, groups = [], []
        for name, tensor in zip(self._blocks, self._tensors, strict=True):
            for rate, run in groupby(range(len(settings)), key=rates[name].__getitem__) if name in rates else ():
                rows = list(run)
                rows = slice(rows[0], rows[-1] + 1)
                self._groups.append((tensor, rows, rate))
                groups.append({"params": [tensor.detach()[rows]], "lr": rate})
        fused = self._tensors[0].device.type in ("cpu", "cuda")
        self._optimizer = torch.optim.Adam(groups, fused=fused)

    def _point(self, model: VAE, row: int, tensors: Sequence[Tensor]) -> None:
        """Make the numbers of a model those of a row."""
        parameters, num_blocks = dict(model.named_parameters()), len(self._blocks)
        for shapes, tensor in zip(self._blocks.values(), tensors[:num_blocks], strict=True):
            parts = tensor.detach()[row].split([shape.numel() for shape in shapes.values()])
            for (name, shape), part in zip(shapes.items(), parts, strict=True):
                parameters[name].data = part.view(shape)
        for buffer, tensor in zip(model.buffers(), tensors[num_blocks:], strict=True):
            buffer.data = tensor[row]

    def release(self, row: int) -> None:
        """Give a model memory of its own; later steps do not change it."""
        for tensor in (*self.models[row].parameters(), *self.models[row].buffers()):
            tensor.data = tensor.data.clone()

    def save(self) -> None:
        """Remember the weights as they are."""
        for saved, tensor in zip(self._saved, (*self._tensors, *self._buffers), strict=True):
            saved.copy_(tensor.detach())

    def go_back(self, row: int) -> None:
        """Give a model memory of its own, with the weights that were last saved."""
        self._point(self.models[row], row, self._saved)
        self.release(row)

    def finite(self) -> list[bool]:
        """Of each model, whether all its parameters are finite."""
        return torch.stack([tensor.detach().isfinite().all(1) for tensor in self._tensors]).all(0).tolist()

    # Steps.

    def step(
        self,
        x: Float[Tensor, "R B *data"],
        noise: Float[Tensor, "R K #B H"],
        weights: Float[Tensor, "K"] | None,
        *,
        observed: Bool[Tensor, "R B *data"] | None = None,
        beta: float | Float[Tensor, ""],
        adapt: float,
        factor: float,
    ) -> Float[Tensor, "R S"]:
        """Ascend every model's objective once; return each one's sums, as `training_step` does.

        Args:
            x, noise, weights, observed, beta, adapt: as for `training_step`, with an axis for the models in front.
            factor: on all learning rates.
        """
        for tensor in self._tensors:
            tensor.grad = None
        sums = self._gradients(x, noise, weights, observed=observed, beta=beta, adapt=adapt)
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        for group, (tensor, rows, rate) in zip(self._optimizer.param_groups, self._groups, strict=True):
            assert tensor.grad is not None
            group["lr"] = rate * factor
            group["params"][0].grad = tensor.grad[rows]
        self._optimizer.step()
        return sums

    def _add_gradients(self, x: Tensor, noise: Tensor, weights: Tensor | None, **options) -> Tensor:
        """Of every model's objective; its sums."""
        losses, sums = self._objectives(self._split(self._tensors), self._buffers, x, noise, weights, **options)
        losses.sum().backward()
        return sums

    def _split(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The parameters, (R, *shape) each."""
        parts = []
        for shapes, tensor in zip(self._blocks.values(), tensors, strict=True):
            # One split, whose backward pass is one concatenation.
            pieces = tensor.split([shape.numel() for shape in shapes.values()], 1)
            parts += [part.view(-1, *shape) for part, shape in zip(pieces, shapes.values(), strict=True)]
        return parts

    def _clip(self, clip_norm: float) -> None:
        gradients = [tensor.grad for tensor in self._tensors if tensor.grad is not None]
        norms = torch.stack([gradient.square().sum(1) for gradient in gradients]).sum(0).sqrt()
        factors = (clip_norm / (norms + CLIP_EPSILON)).clamp(max=1).unsqueeze(1)
        for gradient in gradients:
            gradient.mul_(factors)

    def _objectives(
        self,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        x: Tensor,
        noise: Tensor,
        weights: Tensor | None = None,
        *,
        observed: Tensor | None = None,
        beta: float | Tensor = 1.0,
        adapt: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """`objective` of each model, (R,) and (R, 3+2H)."""

        def one(parameters, buffers, x, noise, *observed) -> tuple[Tensor, Tensor]:
            self._fill(parameters, buffers)
            counted = observed[0] if observed else None
            result = objective(self._template, x, noise, weights, observed=counted, beta=beta, adapt=adapt)
            for place, name, index in self._slots[1]:
                if place[name] is not buffers[index]:
                    raise UsageError(
                        f"a layer puts another tensor in the place of its buffer {name!r}, expected one that changes "
                        "it in place; train these models one by one, by fit"
                    )
            return result

        arguments = (parameters, buffers, x, noise, *([] if observed is None else [observed]))
        return torch.vmap(one)(*arguments)

    def _fill(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Put tensors in the places of the template's parameters and buffers; `functional_call` takes longer."""
        for parameter in parameters:
            # The VAE asks whether its variances are parameters.
            parameter._is_param = True  # type: ignore[attr-defined]
        for place, name, index in self._slots[0]:
            place[name] = parameters[index]
        for place, name, index in self._slots[1]:
            place[name] = buffers[index]

    def try_out(self, x: Tensor, models: Sequence[VAE], *, first: int = 0) -> None:
        """Run the models once on rows (B, *data_shape), to see whether they can run as one; nothing is changed.

        Args:
            x: finite.
            models: the same models once more, each to be run by itself; only their buffers are changed.
            first: number of the first one, for messages.

        Raises:
            UsageError: they cannot, or what one of them computes by itself is something else.
        """
        copies = self._split([tensor.detach().clone() for tensor in self._tensors])
        buffers = [buffer.clone() for buffer in self._buffers]
        noise = x.new_zeros(len(self.models), 1, len(x), *self.models[0].latent_shape)
        rows = x.nan_to_num(nan=0.0).expand(len(self.models), *x.shape)
        try:
            with torch.no_grad():
                losses, _ = self._objectives(copies, buffers, rows, noise)
                alone = torch.stack([objective(model, x, noise[0])[0] for model in models])
        except UsageError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UsageError(f"these models cannot run as one ({reason}); train them one by one, by fit") from error
        apart = (losses - alone).abs() > AGREEMENT * torch.finfo(losses.dtype).eps * (1 + alone.abs())
        if bool(apart.any()):
            raise UsageError(
                f"models[{first + int(apart.nonzero()[0])}] computes something else than the layers of models[{first}] "
                "would with its weights, expected models of one architecture; train it on its own, by fit"
            )


# Blocks of parameters by what moves them: gradients, gradients at the rate of variances, nothing or a closed form.
LEARNED, VARIANCES, FIXED = "learned", "variances", "fixed"
Shapes = dict[str, torch.Size]
Slots = list[tuple[dict[str, Tensor | None], str, int]]


def _blocks(model: VAE) -> dict[str, Shapes]:
    """Names and shapes of the parameters of each block that has any."""
    own = {id(parameter) for parameter in model.variance_parameters()}
    blocks: dict[str, Shapes] = {LEARNED: {}, VARIANCES: {}, FIXED: {}}
    for name, parameter in model.named_parameters():
        block = FIXED if not parameter.requires_grad else VARIANCES if id(parameter) in own else LEARNED
        blocks[block][name] = parameter.shape
    return {name: shapes for name, shapes in blocks.items() if shapes}


def _gather(models: Sequence[VAE], shapes: Shapes) -> Tensor:
    """Parameters of these names as (R, numbers)."""
    rows = [dict(model.named_parameters()) for model in models]
    return torch.stack([torch.cat([row[name].detach().flatten() for name in shapes]) for row in rows])


def _slots(template: VAE, names: Sequence[str]) -> tuple[Slots, Slots]:
    """Where the parameters of these names and the buffers have their places; those that are tied have several."""
    numbers = {id(parameter): names.index(name) for name, parameter in template.named_parameters()}
    buffer_numbers = {id(buffer): number for number, buffer in enumerate(template.buffers())}
    parameters: Slots = []
    buffers: Slots = []
    for module in template.modules():
        for places, found, slots in (
            (module._parameters, numbers, parameters),
            (module._buffers, buffer_numbers, buffers),
        ):
            slots += [(places, name, found[id(value)]) for name, value in places.items() if value is not None]  # type: ignore[misc]
    return parameters, buffers


def flops(model: VAE, x: Tensor) -> float:
    """Floating-point operations of a forward pass per row of x (B, *data_shape), those of products alone."""
    model = copy.deepcopy(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective(model, x, x.new_zeros(1, len(x), *model.latent_shape))
    return counter.get_total_flops() / len(x)


def memory(model: VAE, x: Tensor, num_rows: int) -> float:
    """About how many bytes a model takes in a stack that steps on so many rows, like those of x (B, *data_shape)."""
    model = keep_activations(copy.deepcopy(model))
    kept: dict[int, int] = {}  # bytes of the largest tensor at each place in memory

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        kept[place] = max(kept.get(place, 0), tensor.numel() * tensor.itemsize)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective(model, x, x.new_zeros(1, len(x), *model.latent_shape))
    parameters = sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    del loss  # Its graph has lived until here, so that no two tensors had the same place.
    return COPIES * parameters + PEAK * sum(kept.values()) / len(x) * num_rows
