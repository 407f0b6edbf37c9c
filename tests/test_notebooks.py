"""Every notebook runs from top to bottom on a finished tiny run."""

import json
import shutil
from pathlib import Path

import pytest
from processes import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tiny_run, tmp_path, capsys):
    workdir = shutil.copytree(tiny_run, tmp_path / "run")
    namespace: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name} {cell['id']}", "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                namespace["WORKDIR"] = str(workdir)  # as papermill would
            assert cell["outputs"] == [], f"{path.name}: save notebooks without their outputs"
    shown = capsys.readouterr().out
    assert "* P(Yes)=" in shown and "InverseCoder" in shown
