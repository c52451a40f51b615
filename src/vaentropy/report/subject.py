"""`Subject`: all that a report says about one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vaentropy.diagnosis import Diagnosis
from vaentropy.figures import View
from vaentropy.results import Evaluation
from vaentropy.training import History

__all__ = ["Subject"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A run, as a report shows it.

    Attributes:
        name: of the run, such as its folder; any text.
        description: of its data, one line.
        diagnosis: of the model on these data.
        history: of the training; without epochs where there is none, as in a calibrated run.
        view: of the model; None where it cannot be looked at (and `without_view` says why).
        settings: of the run, plain values.
        environment: versions, device and the like, plain values.
        columns: names of the features, () where they have none.
        shape: of a data point as an image, where it is one that is stored flat.
        without_view: why there is no view.
        remarks: what there is to say besides, one line each.
    """

    name: str
    description: str
    diagnosis: Diagnosis
    history: History
    view: View | None
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    columns: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    without_view: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def train(self) -> Evaluation:
        """Evaluation of the training data."""
        return self.diagnosis.train

    @property
    def held_out(self) -> Evaluation | None:
        """Evaluation of the held-out data, if any."""
        return self.diagnosis.held_out
