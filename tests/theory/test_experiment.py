"""The command that prints what is true."""

import json
import subprocess
import sys

import pytest

from pairgrpo_jax import theory
from pairgrpo_jax.commands.cli import parse
from pairgrpo_jax.commands.theory import Config, execute
from pairgrpo_jax.theory.statement import Statement


def true(key):
    """0. One is one."""
    del key
    return Statement("0", "one is one", "holds", measured=1.0, predicted=1.0, bound=0.5)


def test_a_part_is_written_beside_a_whole_table(tmp_path):
    whole = [tmp_path / "theory.md", tmp_path / "theory" / "statements.json"]
    whole[1].parent.mkdir()
    for path in whole:
        path.write_text("22 statements")
    assert execute(Config(output=tmp_path, only=("8", "7"))) == 0
    assert all(path.read_text() == "22 statements" for path in whole)
    report, folder = (tmp_path / "theory-7-8.md").read_text(), tmp_path / "theory-7-8"
    assert "| 7 |" in report and "| 8 |" in report and "0.333" in report
    assert "](theory-7-8/preferred_can_fall.png)" in report
    assert (folder / "preferred_can_fall.png").stat().st_size > 5000
    rows = json.loads((folder / "statements.json").read_text())
    assert [row["item"] for row in rows] == ["7", "8"] and all(row["confirmed"] for row in rows)


def test_a_whole_table_is_named_theory(tmp_path, monkeypatch):
    monkeypatch.setattr(theory, "STATEMENTS", (true,))
    monkeypatch.setattr(theory, "cosine_table", lambda key: [])
    monkeypatch.setattr(theory, "comparison_table", lambda key: [])
    assert execute(Config(output=tmp_path / "new")) == 0
    assert "1 of 1 statements confirmed" in (tmp_path / "new" / "theory.md").read_text()
    assert (tmp_path / "new" / "theory" / "statements.json").exists()


@pytest.mark.parametrize("bad", ["-1", str(2**32), "1.5"])
def test_a_seed_out_of_bounds_is_refused_before_anything_runs(bad):
    with pytest.raises(ValueError, match="seed"):
        parse(Config(), ["--seed", bad], "pairgrpo theory", None)


def test_an_output_that_cannot_be_a_folder_is_refused_before_anything_runs(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(theory, "STATEMENTS", (lambda key: ran.append(key),))
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"output: .*file is a file; choose another --output"):
        Config(output=file)
    with pytest.raises(ValueError, match=r"output: cannot make .*; choose another --output"):
        execute(Config(output=file / "below"))
    assert not ran and file.read_text() == "mine"


def test_a_contradicted_statement_fails_the_command(tmp_path, monkeypatch, capsys):
    def untrue(key):
        """0. One is two."""
        del key
        return Statement("0", "one is two", "holds", measured=1.0, predicted=2.0, bound=0.5)

    monkeypatch.setattr(theory, "STATEMENTS", (untrue,))
    assert execute(Config(output=tmp_path, only=("0",))) == 1
    assert "NOT confirmed: 0" in capsys.readouterr().out


def test_an_unknown_item_is_one_line_and_exit_code_2(tmp_path):
    command = [
        sys.executable,
        "-c",
        "from pairgrpo_jax.commands.main import main; main()",
        "theory",
        "--output",
        str(tmp_path),
        "--only",
        "7",
        "99",
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("pairgrpo theory: error: only: no statement is called 99; choose from 1, 2, 2b")
    assert result.stderr.count("\n") == 1 and not any(tmp_path.iterdir())
