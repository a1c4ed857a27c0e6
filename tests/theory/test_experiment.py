"""The command that prints what is true."""

import json
import subprocess
import sys

from pairgrpo_jax import theory
from pairgrpo_jax.commands.theory import Config, execute
from pairgrpo_jax.theory.statement import Statement


def test_report_is_written(tmp_path):
    assert execute(Config(output=tmp_path, only=("7", "8"))) == 0
    report = (tmp_path / "theory.md").read_text()
    assert "| 7 |" in report and "| 8 |" in report and "0.333" in report
    assert (tmp_path / "theory" / "preferred_can_fall.png").stat().st_size > 5000
    rows = json.loads((tmp_path / "theory" / "statements.json").read_text())
    assert [row["item"] for row in rows] == ["7", "8"] and all(row["confirmed"] for row in rows)


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
    assert result.stderr.startswith("error: only: no statement is called 99; choose from 1, 2, 2b")
    assert result.stderr.count("\n") == 1
