"""MLflow: a run in a database, seen by `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`, or on a server."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaentropy.checks import require_path
from vaentropy.errors import MissingExtraError, UsageError, shown
from vaentropy.loggers.logger import PROJECT, Logger, Outcome, folder_made

__all__ = ["MLflow"]

DATABASE = "mlflow.db"
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# MLflow's own limits.
PARAMS_AT_ONCE, LONGEST_PARAM = 100, 6000


class MLflow(Logger):
    """A run of MLflow, with the settings as parameters.

    Args:
        folder: for the database mlflow.db; the environment's MLFLOW_TRACKING_URI goes before it.
        name: of the run; None lets MLflow invent one.
        settings: the run's parameters.
        run_id: of a run to go on with, whose last step and what is before it are not written again; None begins a new
            one, in the experiment "vaentropy" or the environment's MLFLOW_EXPERIMENT_NAME.

    Attributes:
        run_id: of the run; None before the block has begun.

    Raises:
        MissingExtraError: mlflow, or what its database needs, is not installed.
        UsageError: an argument has a wrong value.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ):
        super().__init__(name=name, settings=settings)
        try:
            import alembic  # noqa: F401  # the small MLflow comes without, and says so only when its database is opened
            import mlflow
            import sqlalchemy  # noqa: F401
        except ImportError as error:
            raise MissingExtraError((error.name or "mlflow").partition(".")[0], "logging") from None
        if run_id is not None and not isinstance(run_id, str):
            raise UsageError(f"run_id={shown(run_id)} given, expected the id of an MLflow run")
        self.folder, self.run_id = require_path("folder", folder), run_id
        self._mlflow, self._after = mlflow, 0
        self._client: Any = None

    def open(self) -> None:
        """Begin the run, or find it.

        Raises:
            UsageError: the database or server cannot be used, or has no such run.
        """
        where = os.environ.get("MLFLOW_TRACKING_URI")
        local = None if where else folder_made(self.folder).resolve()
        where = where or f"sqlite:///{local}/{DATABASE}"
        try:
            with _quiet():
                self._client = self._mlflow.MlflowClient(where)
                self.run_id = self._begin(local) if self.run_id is None else self._go_on(self.run_id)
        except Exception as error:  # MLflow's own, the database's, the network's
            reason = " ".join(str(error).split())
            raise UsageError(f"MLflow cannot write to {where}: {reason}; see MLFLOW_TRACKING_URI") from error

    def _begin(self, local: Path | None) -> str:
        name, client = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT), self._client
        experiment = client.get_experiment_by_name(name)
        # Or a local MLflow would keep artifacts in the working directory.
        artifacts = None if local is None else (local / "mlartifacts").as_uri()
        number = client.create_experiment(name, artifacts) if experiment is None else experiment.experiment_id
        run_id = client.create_run(number, run_name=self.name).info.run_id
        params = [self._mlflow.entities.Param(key, str(value)[:LONGEST_PARAM]) for key, value in self.settings.items()]
        for first in range(0, len(params), PARAMS_AT_ONCE):
            client.log_batch(run_id, params=params[first : first + PARAMS_AT_ONCE])
        return run_id

    def _go_on(self, run_id: str) -> str:
        self._client.update_run(run_id, status="RUNNING")
        self._after = max((metric.step for metric in self._client.get_metric_history(run_id, "epoch")), default=0)
        return run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        if step > self._after:
            now = time.time_ns() // 1_000_000
            rows = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
            self._client.log_batch(self.run_id, metrics=rows)

    def close(self, outcome: Outcome) -> None:
        """Say how training ended."""
        self._client.set_terminated(self.run_id, STATUSES[outcome])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow tells on stderr of the tables that it makes."""
    talkative = logging.getLogger("mlflow.store.db.utils")
    before = talkative.level
    talkative.setLevel(logging.WARNING)
    try:
        yield
    finally:
        talkative.setLevel(before)
