"""TensorBoard: event files, read by `tensorboard --logdir FOLDER`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaentropy.checks import require_path
from vaentropy.errors import MissingExtraError
from vaentropy.loggers.logger import Logger, Outcome, folder_made

__all__ = ["TensorBoard"]

# What the table of hyperparameters shows beside them.
RESULTS = ("train/elbo", "train/gap", "held_out/elbo")


class TensorBoard(Logger):
    """Event files for TensorBoard, with the settings as hyperparameters.

    A training that goes on in the same folder, from a step in the middle, takes the place of what is there from that
    step on; TensorBoard shows one curve. Each training that is to be compared with others needs a name of its own.

    Args:
        folder: for the event files.
        name: of the run, a folder in `folder`; None writes into that itself.
        settings: hyperparameters.

    Raises:
        MissingExtraError: tensorboard is not installed.
        UsageError: an argument has a wrong value.
    """

    def __init__(self, folder: str | Path, *, name: str | None = None, settings: Mapping[str, Any] | None = None):
        super().__init__(name=name, settings=settings)
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "logging") from None
        self.folder = require_path("folder", folder) / (name or "")
        self._new = SummaryWriter
        self._writer: Any = None
        self._session_end: Any = None

    def open(self) -> None:
        """Make the folder; the file has to know the first step."""
        folder_made(self.folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        writer = self._writer or self._begin(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        # A dashboard that is two minutes behind, TensorBoard's default, is not live; this takes 0.1 ms.
        writer.flush()

    def _begin(self, step: int) -> Any:
        from torch.utils.tensorboard.summary import hparams

        writer: Any = self._new(str(self.folder), purge_step=step)
        self._writer = writer
        # `SummaryWriter.add_hparams` would make a run of its own, beside the one with the curves.
        settings = {name: _plain(value) for name, value in self.settings.items()}
        experiment, session_start, self._session_end = hparams(settings, dict.fromkeys(RESULTS, math.nan))
        for summary in (experiment, session_start):
            writer.file_writer.add_summary(summary)
        return writer

    def close(self, outcome: Outcome) -> None:
        """Say how training ended, and close the file."""
        if self._writer is None:
            return
        from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

        # Made when they are imported, which type checkers do not see.
        statuses: Any = api_pb2.__dict__
        protocol: Any = plugin_data_pb2
        # torch's says success, whatever happened.
        plugin = self._session_end.value[0].metadata.plugin_data
        content = protocol.HParamsPluginData.FromString(plugin.content)
        status = "STATUS_SUCCESS" if outcome == "finished" else "STATUS_FAILURE"
        content.session_end_info.status = statuses[status]
        plugin.content = content.SerializeToString()
        self._writer.file_writer.add_summary(self._session_end)
        self._writer.close()


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)
