"""Notebooks: stored without outputs, and run from beginning to end."""

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 600  # a hang, not slowness: these machines are shared


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_stored(path):
    for cell in read(path)[1]:
        assert cell.outputs == [] and cell.execution_count is None, cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_shows_what_it_is_about(path, tmp_path):
    from nbclient import NotebookClient

    notebook, cells = read(path)
    # In an empty folder, where no file of the repository can be found by accident, and nothing is left.
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert list(tmp_path.iterdir()) == []
    for cell in cells:
        warnings = [output.text for output in cell.outputs if output.get("name") == "stderr"]
        assert warnings == [], cell.source
        shown = {kind for output in cell.outputs for kind in output.get("data", {})}
        if cell.source.startswith("figures.plot_"):
            assert "image/png" in shown, cell.source
        if cell.source.splitlines()[-1] in ("history", "history.train", "diagnosis"):
            assert "text/html" in shown, cell.source
