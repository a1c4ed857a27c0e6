"""Command-line programs: run with `python -m experiments.NAME --help`."""
