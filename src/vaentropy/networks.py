"""Feature networks: anything between features and features.

The layers that the theorem speaks about (posterior heads, latent layer, likelihood heads) are the VAE's. So encoders
here end with an activation, and decoders begin with one: the layer before it, from latents to features, is the VAE's.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vaentropy._typing import Tensor
from vaentropy.checks import require_count, require_counts
from vaentropy.errors import UsageError, shown

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder", "as_shape", "keep_activations"]

Activation = Callable[[], nn.Module]
Network = TypeVar("Network", bound=nn.Module)
# A 4×4 kernel with stride 2 and padding 1 halves the size, and its transpose doubles it.
KERNEL_SIZE, STRIDE, PADDING = 4, 2, 1


def _check_widths(widths: Sequence[int], what: str) -> None:
    require_counts(what, widths)


def _layers(widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    return [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]


def as_shape(data_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Shape of a data point, whose one number may stand alone.

    Raises:
        UsageError: it holds something else than whole numbers of at least 1.
    """
    return require_counts("data_shape", (data_shape,) if isinstance(data_shape, int | float) else data_shape)


class MLPEncoder(nn.Sequential):
    """Flatten, then a linear layer and an activation for each width.

    Args:
        data_shape: of one data point; any number of axes.
        hidden: width of each layer.
        activation: class of the activation.
        condition: width of a condition that the encoder sees as further features; None without one. Without it a
            conditional `VAE` brings the condition in by itself, which generalised better on digits; with fewer
            features than the first layer is wide, this one says more.
    """

    def __init__(
        self,
        data_shape: int | tuple[int, ...],
        hidden: Sequence[int] = (50, 50),
        activation: Activation = nn.ReLU,
        *,
        condition: int | None = None,
    ):
        _check_widths(hidden, "hidden")
        shape = as_shape(data_shape)
        self_in = 0 if condition is None else require_count("condition", condition)
        super().__init__(nn.Flatten(), *_layers([math.prod(shape) + self_in, *hidden], activation))
        self.condition_width = self_in

    def forward(self, input: Tensor, condition: Tensor | None = None) -> Tensor:
        """Features (B, hidden[-1]) of x (B, *data_shape), and of a condition (B, k) for an encoder that takes one."""
        return super().forward(input if condition is None else torch.cat([input.flatten(1), condition], 1))


class MLPDecoder(nn.Sequential):
    """An activation, then a linear layer and an activation for each further width.

    Args:
        hidden: width of each layer, the first of them (`in_features`) being the width of the VAE's latent layer.
        activation: class of the activation.
    """

    def __init__(self, hidden: Sequence[int] = (50, 50), activation: Activation = nn.ReLU):
        _check_widths(hidden, "hidden")
        super().__init__(activation(), *_layers(hidden, activation))
        self.in_features = hidden[0]


def _sizes(data_shape: tuple[int, ...], steps: int) -> list[tuple[int, int]]:
    """(height, width) of an image after 0, 1, … halvings."""
    if len(data_shape) != 3:
        raise UsageError(
            f"data_shape={data_shape} given, expected (channels, height, width) for a convolutional network"
        )
    _, height, width = data_shape
    if min(height, width) < 2**steps:
        raise UsageError(
            f"{steps} layers given for images of {height}×{width}, which can be halved fewer times; use fewer"
        )
    return [(height >> step, width >> step) for step in range(steps + 1)]


def keep_activations(model: Network) -> Network:
    """The model, changed in place to compute no activation again."""
    for module in model.modules():
        if isinstance(module, _Convolutions):
            module.recompute = False
    return model


# Layers that draw no random numbers; of all others, a user's among them, it is not known.
DRAW_NOTHING: tuple[type[nn.Module], ...] = (
    *(nn.Conv2d, nn.ConvTranspose2d, nn.Flatten, nn.Unflatten, nn.Sequential, nn.Identity),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
)


def _may_draw(module: nn.Module) -> bool:
    # Its very class: one that is derived from it may draw, and so may hooks.
    known = type(module) in DRAW_NOTHING
    return not known or bool(module._forward_hooks) or bool(module._forward_pre_hooks)


def _check_repeatable(network: nn.Module) -> None:
    """Refuse layers that do not do the same when they are computed again."""
    for module in network.modules():
        if not module.training:
            continue
        if isinstance(module, nn.RReLU):
            why = "whose gradients PyTorch gets wrong where it is computed again"
        elif any(buffer is not None for buffer in module._buffers.values()):
            why = "whose buffers, such as running statistics, each computation may move"
        else:
            continue
        raise UsageError(
            f"{type(module).__name__} given with recompute=True, {why}; leave it out, or take recompute=False"
        )


class _Convolutions(nn.Sequential):
    """Layers whose activations training may compute again in the backward pass, segment by segment.

    Args:
        segments: the layers, in order. Of each segment its input alone is kept.
        recompute: whether to compute again; nothing else depends on it, and it may be set at any time.
    """

    def __init__(self, segments: Sequence[Sequence[nn.Module]], recompute: bool):
        if not isinstance(recompute, bool):
            raise UsageError(f"recompute={shown(recompute)} given, expected True or False")
        super().__init__(*chain.from_iterable(segments))
        if recompute:
            _check_repeatable(self)
        self.recompute = recompute
        self._ends = tuple(accumulate(len(segment) for segment in segments))

    def forward(self, input: Tensor) -> Tensor:
        """Features of x, or of features."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return super().forward(input)
        # Again: a layer may have been put in, or `recompute` been set, since this was made.
        _check_repeatable(self)
        layers = list(self)
        for start, end in pairwise((0, *self._ends)):
            segment = layers[start:end]
            draws = any(_may_draw(module) for layer in segment for module in layer.modules())
            input = checkpoint(_through, segment, input, use_reentrant=False, preserve_rng_state=draws)  # type: ignore[assignment]
        return input


def _through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class ConvEncoder(_Convolutions):
    """Convolutions that halve the image, each with an activation; flattened.

    Args:
        data_shape: (channels, height, width).
        channels: of each layer.
        activation: class of the activation.
        recompute: keep the input alone for the backward pass, and compute what lies between again there. Layers with
            buffers, such as running statistics, and RReLU are refused.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        channels: Sequence[int] = (32, 64),
        activation: Activation = nn.ReLU,
        *,
        recompute: bool = False,
    ):
        _check_widths(channels, "channels")
        _sizes(data_shape, len(channels))
        steps = pairwise([data_shape[0], *channels])
        layers = [layer for a, b in steps for layer in (nn.Conv2d(a, b, KERNEL_SIZE, STRIDE, PADDING), activation())]
        super().__init__([[*layers, nn.Flatten()]], recompute)


class ConvDecoder(_Convolutions):
    """An activation, then transposed convolutions that double the image up to the size of the data.

    It returns (channels[-1], height, width); the VAE's head turns these channels into the data's, pixel by pixel.

    Args:
        data_shape: (channels, height, width).
        channels: of each layer's output; the latent layer delivers as many as the first of them.
        activation: class of the activation.
        recompute: keep the input of the last convolution and that of the layers before it for the backward pass, and
            compute what lies between again there. The last one takes as much memory as all others together; so no more
            is needed at a time than it needs by itself. Refused layers: as for `ConvEncoder`.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        channels: Sequence[int] = (64, 32),
        activation: Activation = nn.ReLU,
        *,
        recompute: bool = False,
    ):
        _check_widths(channels, "channels")
        sizes = _sizes(data_shape, len(channels))[::-1]
        height, width = sizes[0]
        self_in = channels[0]
        layers: list[nn.Module] = [activation(), nn.Unflatten(1, (self_in, height, width))]
        for (a, b), (small, large) in zip(pairwise([self_in, *channels]), pairwise(sizes), strict=True):
            # Halving an odd size loses a row or column, which doubling must add again.
            surplus = (large[0] - 2 * small[0], large[1] - 2 * small[1])
            layers += [nn.ConvTranspose2d(a, b, KERNEL_SIZE, STRIDE, PADDING, surplus), activation()]
        super().__init__([layers[:-2], layers[-2:]], recompute)
        self.in_features = self_in * height * width
