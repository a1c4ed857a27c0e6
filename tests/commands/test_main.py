"""The command `pairgrpo` before any sub-command."""

import subprocess
import sys
import time

import pytest

from pairgrpo_jax.commands import main

START = "from pairgrpo_jax.commands.main import main; main()"


def test_help_needs_no_jax():
    began = time.perf_counter()
    code = (
        f"import sys; sys.argv = ['pairgrpo', '--help']; {START}; print(sorted(set(sys.modules) & {{'jax', 'tyro'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]" and all(name in done.stdout for name in main.COMMANDS)
    assert time.perf_counter() - began < 5  # 0.1 s on a quiet machine


@pytest.mark.parametrize(("word", "hint"), [("algin", "did you mean align?"), ("x", "choose one of cheetah")])
def test_an_unknown_command_is_named(monkeypatch, capsys, word, hint):
    monkeypatch.setattr(sys, "argv", ["pairgrpo", word])
    with pytest.raises(SystemExit) as end:
        main.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and hint in said and said.count("\n") == 1


def test_every_name_of_the_package_is_importable():
    import pairgrpo_jax

    assert all(getattr(pairgrpo_jax, name) is not None for name in pairgrpo_jax.__all__)


def test_no_word_of_torch_that_nothing_needs(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra lm")
    hide = "import importlib.util as u; real = u.find_spec; "
    hide += "u.find_spec = lambda *x: x[0] != 'torch' and real(*x) or None; "
    hide += "import sys; sys.argv = ['pairgrpo', 'generate', '--model', 'nowhere']; "
    done = subprocess.run([sys.executable, "-c", hide + START], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("pairgrpo generate: error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "orch" not in done.stderr
