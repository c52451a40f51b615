"""What a study is: a question, a plan that says how large it is made, and an outcome."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from vaentropy.checks import require_count, require_seed
from vaentropy.errors import UsageError, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Outcome", "Plan", "Scale", "Study"]

Scale = Literal["quick", "paper"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large studies are made, and what they are run on.

    Attributes:
        scale: "quick", all of them within minutes; or "paper", with the paper's sizes of data and networks.
        exact_settings: train with the paper's optimiser, samples and epochs in place of ours.
        replicates: trainings of each kind, that differ in their seed; None leaves it to the study.
        data: a file or folder, for studies of one data set that can be pointed at the real thing.
        data_folder: where the files of named data sets are; None takes the variable VAENTROPY_DATA.
        seed: of the first replicate, and of all else that is drawn.
        device: cpu, cuda, …; "auto" takes a GPU if there is one.
        progress: a bar on stderr for each training; None shows it on a terminal.

    Raises:
        UsageError: an argument has a wrong value.
    """

    scale: str = "quick"
    exact_settings: bool = False
    replicates: int | None = None
    data: str | None = None
    data_folder: str | None = None
    seed: int = 0
    device: str = "auto"
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise UsageError(f"scale={shown(self.scale)} given, expected {' or '.join(get_args(Scale))}")
        if self.exact_settings and self.scale != "paper":
            raise UsageError("exact_settings given with scale='quick', expected scale='paper': they are the paper's")
        if self.replicates is not None:
            require_count("replicates", self.replicates)
        require_seed(self.seed)

    def pick(self, *, quick: T, paper: T) -> T:
        """What belongs to the scale."""
        return quick if self.scale == "quick" else paper

    def num_replicates(self, *, quick: int, paper: int) -> int:
        """What was asked for, or else what belongs to the scale."""
        return self.replicates or self.pick(quick=quick, paper=paper)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a study found.

    Attributes:
        rows: the table; a mapping from column to number or text each.
        figure: the picture of it.
        finding: one sentence that says what it shows, made from the numbers.
        notes: what else a reader has to know, a sentence each.
        details: further numbers, plain values, for the JSON file alone.
    """

    rows: Sequence[Mapping[str, Any]]
    figure: "Figure"
    finding: str
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A numerical experiment.

    Attributes:
        name: as the command takes it.
        title: one line.
        about: what is done, and with which settings, a sentence or two.
        run: does it.
        takes_data: whether `Plan.data` can point it at other data.
        cost: minutes on one core at the scale of the paper, about; longer ones begin first.
    """

    name: str
    title: str
    about: str
    run: Callable[[Plan], Outcome]
    takes_data: bool = False
    cost: int | float = 1
