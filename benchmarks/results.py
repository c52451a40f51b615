"""What a benchmark found: rows of a table, as JSON and Markdown, with the machine they were measured on."""

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result", "machine", "save_figure"]


def machine() -> dict[str, Any]:
    """Processors, versions and threads: what the figures depend on."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        commit = ""
    return {
        "CPU": f"{platform.machine()}, {os.cpu_count()} cores",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or None,
    }


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    Attributes:
        title: what was asked.
        rows: of the table, one mapping from column to text or number each; what a row lacks is left empty.
        notes: what a reader has to know besides, one line each; what was skipped, and why.
        machine: that it was measured on.
        data: what a figure is drawn from; in JSON alone.
        figure: draws this result, which is saved with it as SVG; None where there is nothing to draw.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=machine)
    data: Any = None
    figure: Callable[["Result"], "Figure"] | None = None

    def markdown(self) -> str:
        """A table, with its title above and the notes below."""
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        lines = [f"### {self.title}", ""]
        if columns:
            lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
            lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in self.rows]
        lines += [f"\n{note}" for note in self.notes]
        where = ", ".join(f"{name} {value}" for name, value in self.machine.items() if value is not None)
        return "\n".join([*lines, "", f"Measured on: {where}.", ""])

    def save(self, folder: Path, name: str) -> None:
        """Write NAME.json, which `Result(**values)` takes back, NAME.md, and NAME.svg where there is a figure."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "figure"}
        (folder / f"{name}.json").write_text(json.dumps(values, indent=1, default=str) + "\n")
        (folder / f"{name}.md").write_text(self.markdown())
        if self.figure is not None:
            save_figure(self.figure(self), folder / f"{name}.svg")


def save_figure(figure: "Figure", path: Path) -> None:
    """As SVG on white; equal figures give equal files."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "vaentropy"}):
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
