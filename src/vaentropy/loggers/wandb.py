"""Weights & Biases: a run in files, for `wandb sync`, or sent as it goes where the environment asks for that."""

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaentropy.checks import require_count, require_path
from vaentropy.errors import MissingExtraError, UsageError, shown
from vaentropy.loggers.logger import PROJECT, Logger, Outcome, folder_made

__all__ = ["WandB"]

EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 130}
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class WandB(Logger):
    """A run of Weights & Biases. Nothing is sent unless WANDB_API_KEY or WANDB_MODE is in the environment; `wandb sync`
    sends it later.

    Args:
        folder: for the files, in wandb/ there; the environment's WANDB_DIR goes before it.
        name: of the run; None lets W&B invent one.
        settings: the run's config.
        run_id: of a run to go on with; None begins a new one.
        after: rows up to this step are in that run already, and are not written again.

    Attributes:
        run_id: of the run.

    Raises:
        MissingExtraError: wandb is not installed.
        UsageError: an argument has a wrong value.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        run_id: str | None = None,
        after: int = 0,
    ):
        super().__init__(name=name, settings=settings)
        try:
            import wandb
        except ImportError:
            raise MissingExtraError("wandb", "logging") from None
        if run_id is not None and (not isinstance(run_id, str) or not ID.fullmatch(run_id)):
            raise UsageError(f"run_id={shown(run_id)} given, expected the letters and digits of a W&B run's id")
        self.folder, self.after = require_path("folder", folder), require_count("after", after, least=0)
        self._goes_on, self.run_id = run_id is not None, run_id or uuid.uuid4().hex[:8]
        self._wandb = wandb
        self._run: Any = None

    def open(self) -> None:
        """Begin the run.

        Raises:
            UsageError: W&B refuses, say because its server does not know the key.
        """
        # Named, since W&B looks into the environment but once in a process. None: as it does by itself.
        mode: Any = os.environ.get("WANDB_MODE") or (None if "WANDB_API_KEY" in os.environ else "offline")
        folder = folder_made(os.environ.get("WANDB_DIR") or self.folder)
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=str(folder),
                id=self.run_id,
                name=self.name,
                config=self.settings,
                mode=mode,
                # Offline a run that goes on is a further folder, with the same id.
                resume="allow" if mode != "offline" and self._goes_on else None,
                reinit="create_new",
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # of several kinds, from the server's and from the settings'
            reason = " ".join(str(error).split())
            raise UsageError(
                f"Weights & Biases cannot begin: {reason}; or write offline with WANDB_MODE=offline"
            ) from error
        self.after = max(self.after, self._run.starting_step - 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of the run's history; W&B puts those of one step together."""
        if step > self.after:
            self._run.log(dict(values), step=step)

    def close(self, outcome: Outcome) -> None:
        """Finish the run; W&B shows one that failed or was interrupted as such."""
        self._run.finish(exit_code=EXIT_CODES[outcome])
