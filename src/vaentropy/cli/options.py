"""Options of the command: those of `train` are made from the fields of `RunConfig`."""

import csv
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any, get_type_hints

import click

from vaentropy.config import CHANGEABLE, RunConfig

__all__ = [
    "COLLAPSE",
    "PATH",
    "CommaSeparated",
    "as_json",
    "changes",
    "collapse_of",
    "completing",
    "condition",
    "data_folder",
    "device",
    "engine_of",
    "engines",
    "engines_if_asked",
    "log",
    "out_file",
    "out_rows",
    "overwrite",
    "report",
    "settings",
    "settings_but",
    "settings_of",
]


class CommaSeparated(click.ParamType):
    """Several values with commas between them; one that holds a comma itself is in double quotes.

    Args:
        kind: of one value, int or str.
    """

    def __init__(self, kind: type):
        self.kind = kind
        self.name = "N,N,..." if kind is int else "NAME,NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """From text to values."""
        if isinstance(value, tuple):
            return value
        try:
            # As a line of CSV, so that quotes may hold a comma.
            parts = next(csv.reader([str(value)], skipinitialspace=True, strict=True), None) or [""]
            return tuple(self.kind(part.strip()) for part in parts)
        except csv.Error:
            self.fail(f"{value!r} given, expected values with commas between them; close the quotes", param, ctx)
        except ValueError:
            self.fail(f"{value!r} given, expected whole numbers with commas between them, such as 50,50", param, ctx)


KINDS: dict[Any, Any] = {
    str: str,
    str | None: str,
    int: int,
    int | None: int,
    float: float,
    float | None: float,
    tuple[int, ...]: CommaSeparated(int),
    tuple[str, ...]: CommaSeparated(str),
}

# Text, of which a shell knows that files complete it; whoever opens it says what is wrong with it.
PATH = click.Path(readable=False)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
data_folder = click.option(
    "--data-folder", type=PATH, help="Folder with the files of the data set, if they have moved."
)
device = click.option("--device", default="auto", show_default=True, help="cpu, cuda, ...; auto takes a GPU if any.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace what --out names.")
report = click.option("--report/--no-report", default=True, help="Write report.html into the run; default: write it.")
log = click.option(
    "--log",
    type=CommaSeparated(str),
    help="Live, to any of console, tensorboard, wandb, mlflow; files go to the folder logs/ of the run.",
)
condition = click.option(
    "--condition",
    metavar="VALUE,VALUE,...",
    type=CommaSeparated(str),
    help="What a conditional model is given for all rows: a value for each column of the run's condition.",
)
out_rows = click.option(
    "--out",
    required=True,
    type=PATH,
    help="A .npy, .csv or .parquet file; FOLDER/ of Parquet files, for large results; - writes CSV to stdout.",
)
out_file = click.option(
    "--out", required=True, type=PATH, help="A .npy, .csv or .parquet file; - writes CSV to stdout."
)


# An address of a cluster is a word of these, or has a colon: head:6379, ray://head:10001.
ENGINES, ADDRESSES = ("processes", "ray"), ("auto", "local")


def engines(
    command: Callable[..., Any], more: str = " Each holds the data in memory, unless they are streamed."
) -> Callable[..., Any]:
    """Options `engine` and `workers`, of which `engine_of` makes an engine.

    Args:
        command: that takes them.
        more: for the help.
    """
    workers = click.option(
        "--workers",
        metavar="N",
        type=int,
        help="Tasks at a time; default: one per core, or per GPU where there are some. 1 works here, in this process."
        + more,
    )
    engine = click.option(
        "--engine",
        metavar="processes|ray|ADDRESS",
        shell_complete=completing((*ENGINES, "auto")),
        help="processes of this machine (default), ray on this machine, or the address of a Ray cluster: auto, "
        "head:6379, ray://head:10001.",
    )
    return engine(workers(command))


def engines_if_asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `engines`, for what is done here unless one of them is given."""
    return engines(command, " Without --engine and --workers: here. Several take longer than one for few rows.")


def engine_of(engine: str | None, workers: int | None, *, device: str | None = None, threads: int | None = None) -> Any:
    """The engine that the options of `engines` mean.

    Args:
        engine: "processes", "ray", or the address of a Ray cluster; None is "processes".
        workers: tasks at a time, or None.
        device: of the tasks, "auto" where None; each takes a GPU if there is one and the device does not say otherwise.
        threads: of the CPU for each; None is one.

    Raises:
        UsageError: an unknown engine, one that does not answer, or a number below 1.
        MissingExtraError: Ray is not installed.
    """
    import torch

    from vaentropy.cli.launched import require_alone
    from vaentropy.engines import Here, Processes, Ray, available_cores
    from vaentropy.errors import UsageError, nearest, shown

    require_alone()
    each = threads or 1
    kind = (device or "auto").split(":")[0]
    gpus = torch.cuda.device_count() if kind in ("auto", "cuda") else 0
    if engine is None or engine == "processes":
        most = max(1, available_cores() // each)
        chosen = Processes(workers if workers is not None else gpus or most, threads=each)
        return Here() if chosen.workers == 1 else chosen
    if engine != "ray" and engine not in ADDRESSES and ":" not in engine:
        known = (*ENGINES, *ADDRESSES)
        raise UsageError(
            f"engine={shown(engine)} given, {nearest(engine, known)}expected processes, ray, or the address of a Ray "
            "cluster, such as auto or head:6379"
        )
    # The machines of a cluster may have GPUs that this one has not.
    each_task = {"num_cpus": each, "num_gpus": int(gpus > 0 or kind == "cuda")}
    cluster = Ray(None if engine == "ray" else engine, workers=workers, **each_task)
    cluster.require_there()
    return cluster


COLLAPSE = "When a latent has collapsed: relative (to the largest KL), paper, or with less KL than so many nats."


def collapse_of(text: str) -> Any:
    """A rule of collapse from its text."""
    try:
        return float(text)
    except ValueError:
        return text


def _shown(default: Any) -> str | bool:
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or False
    return False if default is None or default is False else str(default)


def completing(choices: tuple[str, ...]) -> Callable[..., list[str]]:
    """What a shell completes an option's value with."""
    return lambda ctx, param, incomplete: [choice for choice in choices if choice.startswith(incomplete)]


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting of a run but `data`, which is an argument; None where it is not given."""
    return settings_but()(command)


def settings_but(*left_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As `settings`, without some of them."""
    chosen = [setting for setting in fields(RunConfig) if setting.name not in ("data", *left_out)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(chosen):
            command = _option(setting)(command)
        return command

    return decorate


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `settings`, to change those of a run: without defaults, and help for those alone that can be changed."""
    for setting in reversed(fields(RunConfig)):
        if setting.name != "data":
            fixed = setting.name not in (*CHANGEABLE, "data_folder")
            command = _option(setting, show_default=False, hidden=fixed)(command)
    return command


def _option(setting: Field, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    name, kind = setting.name.replace("_", "-"), get_type_hints(RunConfig)[setting.name]
    flag = kind in (bool, bool | None)
    options: dict[str, Any] = {} if flag else {"type": KINDS[kind]}
    if setting.metadata["choices"]:
        # Not click's own Choice, whose message does not name the nearest.
        options["shell_complete"] = completing(setting.metadata["choices"])
    declaration = f"--{name}/--no-{name}" if flag else f"--{name}"
    options |= {"show_default": _shown(setting.default), "help": setting.metadata["help"]}
    return click.option(declaration, setting.name, default=None, **{**options, **more})


def settings_of(config: str | None, given: dict[str, Any]) -> RunConfig:
    """Settings from a YAML file, if any, with those of the command line over them.

    Raises:
        VaentropyError: the file cannot be read, or a setting is wrong.
    """
    from pathlib import Path

    from vaentropy.errors import DataError
    from vaentropy.files import read_yaml

    named = {name: value for name, value in given.items() if value is not None}
    if config is None:
        return RunConfig(**named)
    try:
        # Checked on their own first, so that the message names the file.
        stored = RunConfig.from_dict(read_yaml(Path(config)), config)
    except FileNotFoundError:
        raise DataError(f"{config}: no such file; pass the path of a YAML file with settings") from None
    return RunConfig(**{**{f.name: getattr(stored, f.name) for f in fields(stored)}, **named})
