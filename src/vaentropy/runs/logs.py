"""Live logs of a run, in its folder.

RUN/logs/tensorboard/    event files
RUN/logs/wandb/          runs of Weights & Biases, unless the environment's WANDB_DIR says otherwise
RUN/logs/mlflow.db       MLflow's database, unless the environment's MLFLOW_TRACKING_URI says otherwise
RUN/logs/runs.json       the names under which W&B and MLflow know the run, to go on with it
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaentropy.config import RunConfig
from vaentropy.errors import DataError, UsageError, nearest, shown
from vaentropy.loggers import Console, Logger, MLflow, TensorBoard, Together, WandB
from vaentropy.runs.folder import LOG_IDS, LOGS, RunFolder
from vaentropy.training.settings import Settings

__all__ = ["logs_of", "require_logs"]

IDS = f"{LOGS}/{LOG_IDS}"


def _makers(
    folder: Path,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    every: int = 1,
    ids: Mapping[str, str] | None = None,
    after: int = 0,
) -> dict[str, Callable[[], Logger]]:
    """What makes the logger of each tool; one that is made writes nothing before it is opened."""
    about: dict[str, Any] = {"name": name, "settings": settings}
    ids = ids or {}
    return {
        "console": lambda: Console(every=every),
        "tensorboard": lambda: TensorBoard(folder / "tensorboard", settings=settings),
        "wandb": lambda: WandB(folder, run_id=ids.get("wandb"), after=after, **about),
        "mlflow": lambda: MLflow(folder, run_id=ids.get("mlflow"), **about),
    }


def require_logs(names: Any) -> None:
    """Refuse tools that there are not, or that are not installed.

    Raises:
        UsageError: no list of names of tools.
        MissingExtraError: a library is missing.
    """
    makers = _makers(Path())
    expected = f"expected any of {', '.join(makers)}"
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UsageError(f"log={shown(names)} given, {expected}, in a list")
    for name in names:
        if not isinstance(name, str) or name not in makers:
            raise UsageError(f"log {shown(name)} given, {expected}; {nearest(name, makers)}".rstrip("; "))
        makers[name]()


@contextmanager
def logs_of(folder: RunFolder, config: RunConfig, names: Iterable[str], *, resume: bool) -> Iterator[Together]:
    """The loggers of a run, open.

    Args:
        folder: of the run.
        config: shown as the run's settings.
        names: of the tools, checked.
        resume: go on with what the folder has of them.

    Raises:
        UsageError: a tool cannot write.
        DataError: what the folder says of its runs is damaged.
    """
    ids = _ids(folder) if resume else {}
    rows = folder.history() if "wandb" in ids else []
    makers = _makers(
        folder.file(LOGS),
        name=folder.path.resolve().name,
        settings=config.to_dict(),
        every=Settings(**config.settings()).epochs_between_evaluations,
        ids=ids,
        # W&B's files cannot be asked; the history had each row before W&B had it.
        after=int(rows[-1]["step"]) if rows else 0,
    )
    each = {name: makers[name]() for name in names}
    with Together(each.values()) as log:
        now = {name: made.run_id for name, made in each.items() if isinstance(made, WandB | MLflow)}
        if now != {name: ids.get(name) for name in now}:
            folder.write_json(IDS, {**ids, **now})
        yield log


def _ids(folder: RunFolder) -> dict[str, str]:
    path = folder.file(IDS)
    if not path.exists():
        return {}
    try:
        ids = json.loads(folder.text(IDS))
        if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
            raise ValueError("no names of runs")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}); remove it to begin new logs") from error
    return ids
