"""A language model from a clone: `python -m experiments.align METHOD` is `pairgrpo align METHOD`."""

from pairgrpo_jax.commands.main import run

if __name__ == "__main__":
    run("align")
