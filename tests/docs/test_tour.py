"""The notebook, run from its first cell to its last."""

import os
import pathlib
import stat
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
TOUR = REPOSITORY / "docs" / "tour.ipynb"


def test_the_tour_has_ten_cells_and_no_outputs():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not in this set of packages")
    notebook = nbformat.read(TOUR, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_the_tour_runs(trained_run, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not in this set of packages")
    pytest.importorskip("ipykernel", reason="ipykernel is not in this set of packages")
    import nbformat

    # This checkout's command, whatever is installed.
    command = tmp_path / "bin" / "mnist-ae"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("MNIST_AE_ROOT", str(trained_run.root))
    monkeypatch.delenv("MNIST_DATA_DIR", raising=False)
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=1_200,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    text = [
        "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "")
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    pictures = [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    assert "4500 train" in text[0]
    # All but ServingValidator, which the shared run gave more time, and what takes its verdict.
    assert [line.split()[0] for line in text[1].splitlines() if "cached" not in line] == [
        "ServingValidator",
        "Pusher",
        "RunReport",
    ]
    assert f"{trained_run.result['metrics']['overall']['mse']:.4f}" in text[2]
    assert trained_run.model_path.rsplit("/", 1)[1] in text[3] or "PushedModel" in text[3]
    assert "JPEG" in text[6] and "training image" in text[7]
    assert "inversion" in text[8] and "100%" in text[8]
    assert "reconstruction_error" in text[9] and "500 images" in text[9]
    assert [n >= 1 for n in pictures] == [i in (0, 4, 5, 6, 7) for i in range(10)]
