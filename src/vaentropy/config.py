"""`RunConfig`: everything that determines a training run. The command's options and their help are made from it.

Nothing here imports PyTorch at the top, so that `vaentropy --help` need not wait for it.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_type_hints

from vaentropy.checks import require_count, require_path
from vaentropy.errors import UsageError, nearest, shown

__all__ = ["CHANGEABLE", "DATA", "DTYPES", "FAMILIES", "NETWORKS", "RunConfig"]

FAMILIES = ("vae0", "vae1", "vae2", "vae3")
NETWORKS = ("mlp", "conv")
SCHEDULES = ("one_cycle", "cosine", "constant")
DTYPES = ("float32", "float64")
PRECISIONS = ("full", "bf16")
MAX_THREADS = 1024  # with many more the library that makes them ends the process
COUNTS = ("threads", "latent_dim", "num_samples", "evaluation_samples", "checkpoint_every", "keep_checkpoints")
# Settings that decide which numbers a run is trained and held out on.
DATA = (
    "data",
    "data_folder",
    "columns",
    "exclude",
    "condition",
    "key",
    "image_size",
    "crop",
    "held_out",
    "scale",
    "dequantise",
    "missing",
    "stream",
    "seed",
    "dtype",
)
# Settings that a run can go on with others of: all that do not say what the model is of, or what its data are.
CHANGEABLE = (
    "model",
    "epochs",
    "batch_size",
    "micro_batch_size",
    "learning_rate",
    "schedule",
    "variances",
    "clip_norm",
    "beta",
    "warmup",
    "num_samples",
    "evaluation_samples",
    "evaluate_every",
    "patience",
    "plateau",
    "max_rollbacks",
    "compile",
    "precision",
    "recompute",
    "checkpoint_every",
    "keep_checkpoints",
    "device",
    "threads",
)
EXPECTED = {
    str: "text",
    str | None: "text or nothing",
    bool: "true or false",
    bool | None: "true, false or nothing",
    int: "a whole number",
    int | None: "a whole number or nothing",
    float: "a number",
    float | None: "a number or nothing",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of names",
}


def _setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a training run; each field's metadata hold its help text.

    Raises:
        UsageError: a setting has a wrong value.
    """

    data: str = _setting("digits", "Name of a data set, or path of a file or folder.")
    data_folder: str | None = _setting(None, "Folder with the files of a named data set; default: $VAENTROPY_DATA.")
    columns: tuple[str, ...] = _setting((), "Columns of a table to use, in this order; default: all.")
    exclude: tuple[str, ...] = _setting((), "Columns of a table to leave out, such as labels.")
    condition: tuple[str, ...] = _setting((), "Columns of a table, or labels, that the model is given; default: none.")
    key: str | None = _setting(None, "Name of the array in a .npz file that holds several.")
    image_size: int | None = _setting(None, "Resize images to so many pixels.")
    crop: int | None = _setting(None, "First cut so many pixels out of the middle of images (CelebA: 148, size 64).")
    held_out: float | None = _setting(None, "Fraction held out; default: the data set's own split, 0.1 of files.")
    scale: str | None = _setting(None, "none, standard or min_max, of training data; default: the data set's own.")
    dequantise: bool = _setting(False, "Add uniform noise to whole numbers, so that bits per dimension compare.")
    missing: str = _setting("error", "ignore takes NaN and empty fields for missing values; error refuses them.")
    stream: bool | None = _setting(None, "Read data piece by piece; default: where they are large.")
    model: str = _setting("vae1", "vae0, vae1, vae2 or vae3.", FAMILIES)
    latent_dim: int = _setting(2, "Number of latents.")
    network: str = _setting("mlp", "mlp, or conv for images (channels, height, width).", NETWORKS)
    hidden: tuple[int, ...] = _setting((50, 50), "Widths (conv: channels) of the encoder's layers.")
    epochs: int = _setting(500, "Passes over the data.")
    batch_size: int = _setting(200, "Points per step.")
    micro_batch_size: int | None = _setting(None, "Points per pass forward and back, to save memory; default: all.")
    learning_rate: float = _setting(5e-3, "Of Adam.")
    schedule: str = _setting("one_cycle", "Of the learning rate: one_cycle, cosine or constant.", SCHEDULES)
    variances: str = _setting("analytic", "analytic, or learned by gradient.", ("analytic", "learned"))
    clip_norm: float | None = _setting(None, "Largest norm of the gradient; default: none.")
    beta: float = _setting(1.0, "Weight of the KL term.")
    warmup: float = _setting(0.0, "Fraction of training in which that weight rises from 0; default: none.")
    num_samples: int = _setting(1, "Draws of z per point and step.")
    evaluation_samples: int | None = _setting(None, "Draws of z per point to evaluate; default: 16, fewer for many.")
    evaluate_every: int | None = _setting(None, "Epochs between held-out evaluations; default: ten of them.")
    patience: int | None = _setting(None, "Stop after so many without a better held-out ELBO; default: never.")
    plateau: float | None = _setting(None, "Stop when the entropy sum rises less in ten epochs (nats); default: never.")
    max_rollbacks: int = _setting(3, "How often to go back with a lower learning rate when training diverges.")
    compile: bool | None = _setting(None, "Compile training steps (needs a C++ compiler); default: where it pays.")
    precision: str = _setting("full", "Of the networks in training; bf16 for devices that have it.", PRECISIONS)
    recompute: bool = _setting(False, "Compute activations of convolutions again going back, to save memory.")
    checkpoint_every: int | None = _setting(None, "Steps between checkpoints; default: about every 30 seconds.")
    keep_checkpoints: int = _setting(2, "Newest checkpoints that are kept.")
    seed: int = _setting(0, "Of split, weights, batches and noise.")
    device: str = _setting("auto", "cpu, cuda, ...; auto takes a GPU if any.")
    dtype: str = _setting("float32", "float32 or float64.", DTYPES)
    threads: int | None = _setting(None, "Of the CPU; default: PyTorch's, or 1 for small networks.")

    def __post_init__(self) -> None:
        _require_types(vars(self))
        for name, allowed in {"model": FAMILIES, "network": NETWORKS, "dtype": DTYPES, "precision": PRECISIONS}.items():
            value = getattr(self, name)
            if value not in allowed:
                expected = f"expected one of {', '.join(allowed)}; {nearest(value, allowed)}".rstrip("; ")
                raise UsageError(f"{name}={shown(value)} given, {expected}")
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None:
                require_count(name, value)
        for name in ("data", "data_folder"):
            if getattr(self, name) is not None:
                require_path(name, getattr(self, name))
        if self.recompute and self.network != "conv":
            raise UsageError(f"recompute=True given with network={shown(self.network)}, expected conv, or no recompute")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise UsageError(f"threads={self.threads} given, expected at most {MAX_THREADS}")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"warmup={shown(self.warmup)} given, expected a fraction of training, from 0 to 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed={shown(self.seed)} given, expected a whole number from 0 to 2^63 - 1")
        self.settings()

    def settings(self) -> dict[str, Any]:
        """What `fit` is given of it.

        Raises:
            UsageError: a setting has a wrong value.
        """
        # Here, since these import PyTorch.
        from vaentropy.expectation import MonteCarlo
        from vaentropy.training.schedules import warmup
        from vaentropy.training.settings import Settings

        own = {f.name for f in fields(self)}
        chosen = {f.name: getattr(self, f.name) for f in fields(Settings) if f.name in own}
        chosen["expectation"] = MonteCarlo(self.num_samples)
        if self.evaluation_samples is not None:
            chosen["evaluation_expectation"] = MonteCarlo(self.evaluation_samples)
        Settings(**chosen)
        if self.warmup:
            chosen["beta"] = warmup(self.warmup, self.beta)
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for YAML: lists in place of tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[Any, Any], where: str = "settings") -> "RunConfig":
        """The inverse of `to_dict`; settings that are not named keep their defaults.

        Args:
            values: by name.
            where: names their origin in messages, such as the path of a file.

        Raises:
            UsageError: an unknown key, or a wrong value.
        """
        if not isinstance(values, Mapping):
            raise UsageError(f"{where}: {shown(values)} given, expected settings with names")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                hint = nearest(name, known) or f"there are {', '.join(known)}"
                raise UsageError(f"{where}: unknown setting {shown(name)}; {hint.strip()}")
        hints = get_type_hints(cls)
        ready = {name: _from_yaml(value, hints[name]) for name, value in values.items()}
        try:
            _require_types(ready)
            return cls(**ready)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None


def _require_types(values: Mapping[str, Any]) -> None:
    hints = get_type_hints(RunConfig)
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise UsageError(f"setting {name}: {shown(value)} given, expected {EXPECTED[hints[name]]}")


def _from_yaml(value: Any, kind: Any) -> Any:
    """YAML has lists, no tuples; takes 1e-3, without a point, for text; and numbers of columns need no quotes in it."""
    if kind in (tuple[int, ...], tuple[str, ...]) and isinstance(value, str | int) and not isinstance(value, bool):
        value = [value]  # hidden: 50, exclude: label
    if isinstance(value, list):
        names = kind == tuple[str, ...]
        return tuple(str(item) if names and isinstance(item, int) else item for item in value)
    if isinstance(value, str) and kind in (float, float | None):
        with suppress(ValueError):
            return float(value)
    return value


def _fits(value: Any, kind: Any) -> bool:
    if kind == tuple[int, ...]:
        return isinstance(value, tuple) and all(_fits(item, int) for item in value)
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if isinstance(value, bool):
        return kind in (bool, bool | None)
    # A whole number is a number.
    return isinstance(value, kind | int) if kind in (float, float | None) else isinstance(value, kind)
