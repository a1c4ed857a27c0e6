"""One update on fixed completions, ours and a peer's: the same loss and gradient, the seconds, the peak memory.

    python -m experiments.benchmarks.align --peer-python /path/to/python
    python -m experiments.benchmarks.align --peer tunix --peer-python /path/to/another/python

The peer's interpreter needs torch and trl, or google-tunix. Both sides are processes of their own that take turns on
one machine, with the same weights, tokens, advantages and old log-probabilities: losses and gradients in float64
(TRL), where a difference is one of the formulas, and in float32, where it may be one of rounding; times and memory in
float32. Every line printed is JSON; exits with 1 if a loss or a gradient norm differs by more than the tolerance, with
TRL in float64.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from experiments.benchmarks.answers import serve
from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main

GROUPS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 2, 4, 64, 64
# Name -> what differs from plain GRPO, in our words and in the peers'.
SETTINGS = {
    "grpo": {"ours": {}, "trl": {"loss_type": "grpo", "beta": 0.0}, "tunix": {}},
    "grpo_kl": {
        "ours": {"ref_beta": 0.04},
        "trl": {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
        "tunix": {"beta": 0.04},
    },
    "dapo": {
        "ours": {"aggregate": "token_mean", "clip_high": 0.28},
        "trl": {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
        "tunix": {"loss_agg_mode": "token-mean", "epsilon_high": 0.28},
    },
    "dr_grpo": {
        "ours": {"aggregate": "constant"},
        "trl": {"loss_type": "dr_grpo", "beta": 0.0},
        "tunix": {"loss_agg_mode": "sequence-mean-token-scale"},
    },
    "gspo": {
        "ours": {"level": "sequence"},
        "trl": {"loss_type": "grpo", "beta": 0.0, "importance_sampling_level": "sequence"},
        "tunix": {"loss_algo": "gspo-token"},
    },
}
PRECISIONS = {"trl": ("float64", "float32"), "tunix": ("float32",)}  # Tunix casts to float32


@dataclass(frozen=True)
class Comparison:
    """What to run."""

    peer: Literal["trl", "tunix"] = "trl"
    """Which library."""
    peer_python: Path = Path(sys.executable)
    """Interpreter that has it."""
    model: str = "smollm2"
    """As in experiments.align."""
    repeats: int = 5
    """Timed updates of each side, in turns. In a turn one more goes before, untimed: after a pause caches are cold."""
    tolerance: float = 1e-5
    """Largest difference of losses (absolute) and of gradient norms (relative)."""
    remat: bool = False
    """Recompute layers in our backward pass."""
    ours: Path | None = None
    """Not for the command line: be our side, on this folder."""
    dtype: Literal["float32", "float64"] = "float32"
    """Not for the command line: of that side."""


class Side:
    """A process that answers questions."""

    def __init__(self, command: list[str], log: Path):
        """Starts it; what it prints beside answers goes to `log`."""
        self.log = log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), text=True
        )

    def ask(self, question: str):
        """Its answer; ValueError with its last words if it ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: below
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise ValueError(f"{self.process.args[0]} ended early:\n{self.log.read_text()[-2000:]}")  # type: ignore

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


@contextlib.contextmanager
def started(mine: list[str], peer: list[str], folder: Path) -> Iterator[tuple[Side, Side]]:
    """Both processes, fresh, ended afterwards; what they print beside answers is in `folder`."""
    both = Side(mine, folder / "ours.log"), Side(peer, folder / "peer.log")
    try:
        yield both
    finally:
        for side in both:
            side.close()


def in_turns(both: tuple[Side, Side], question: str, repeats: int) -> list[list]:
    """`[answer, peer's answer]` of each turn; one that does not count goes before each answer, and before all turns."""
    ours, peer = both
    return [[side.ask(question) for side in (ours, ours, peer, peer)][1::2] for _ in range(repeats + 1)][1:]


def make_batch(vocab: int, old_logp=None) -> dict:
    """Fixed tokens of unequal lengths, advantages, and log-probabilities near the policy's own."""
    rng = np.random.default_rng(0)
    rows = GROUPS * SAMPLES
    prompts = [rng.integers(20, vocab, n).tolist() for n in rng.integers(PROMPT_TOKENS // 2, PROMPT_TOKENS + 1, GROUPS)]
    prompts[0] = rng.integers(20, vocab, PROMPT_TOKENS).tolist()
    lengths = rng.integers(NEW_TOKENS // 2, NEW_TOKENS + 1, rows)
    lengths[0] = NEW_TOKENS
    old_logp = np.zeros((rows, NEW_TOKENS)) if old_logp is None else old_logp
    noise = rng.normal(0, 0.1, (2, rows, NEW_TOKENS))
    return {
        "prompts": prompts,
        "completions": rng.integers(20, vocab, (rows, NEW_TOKENS)).tolist(),
        "lengths": lengths.tolist(),
        "group_size": SAMPLES,
        "advantages": rng.normal(size=rows).round(4).tolist(),
        "old_logp": (old_logp + noise[0]).tolist(),
        "ref_logp": (old_logp + noise[1]).tolist(),
        "settings": SETTINGS,
    }


def to_batch(given: dict, dtype: str = "float32"):
    """The batch in our layout, log-probabilities and advantages in `dtype`."""
    import jax.numpy as jnp

    from pairgrpo_jax.lm.alignment import Batch
    from pairgrpo_jax.lm.data import pad_texts
    from pairgrpo_jax.methods import Advantages

    prompts, lengths = pad_texts(given["prompts"], PROMPT_TOKENS)
    groups = {
        name: jnp.asarray(np.asarray(given[name]).reshape(GROUPS, SAMPLES, *np.shape(given[name])[1:]), dtype)
        for name, dtype in (("completions", "int32"), ("lengths", "int32"), ("advantages", dtype))
    }
    logp = {
        name: jnp.asarray(np.reshape(given[name], (GROUPS, SAMPLES, NEW_TOKENS)), dtype)
        for name in ("old_logp", "ref_logp")
    }
    alive = jnp.ones(GROUPS)
    signal = Advantages(groups.pop("advantages"), alive)
    return Batch(jnp.asarray(prompts), jnp.asarray(lengths), alive=alive, signal=signal, **groups, **logp)


def answer_as_ours(folder: Path, dtype: str, remat: bool) -> None:
    """Our side."""
    import jax
    import optax

    from pairgrpo_jax.lm import load_model
    from pairgrpo_jax.lm.alignment import Adapters, AlignConfig, make_loss
    from pairgrpo_jax.lm.alignment.updates import adaptive_of
    from pairgrpo_jax.methods import Grpo
    from pairgrpo_jax.training import TrainState, make_update_step

    jax.config.update("jax_enable_x64", dtype == "float64")
    model = load_model(folder, dtype=dtype, remat=remat)
    batch = to_batch(json.loads((folder / "batch.json").read_text()), dtype)
    optimizer, still = optax.adamw(1e-6), optax.set_to_zero()
    state = TrainState.create({"model": model.params}, optimizer, jax.random.key(0))
    model = dataclasses.replace(model, params=None)  # the state's are the only ones
    plain, adaptive = AlignConfig(Grpo(), adapters=Adapters(lora_rank=0)), adaptive_of(state)
    update = make_update_step(make_loss(plain, model, None, adaptive), optimizer)

    def loss(name: str) -> tuple[float, float]:
        config = plain.replace(**SETTINGS[name]["ours"])
        probe = make_update_step(make_loss(config, model, None, adaptive), still, donate=False)
        _, metrics = probe(state.replace(opt_state=still.init(state.params)), batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = update(state, batch)
        jax.block_until_ready((state.params, metrics))
        return time.perf_counter() - start

    serve(loss=loss, step=step)


def report(**values) -> None:
    """Prints one line of JSON."""
    print(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}), flush=True)


def write_inputs(folder: Path, name: str) -> None:
    """Weights and batch, the old log-probabilities near those of the model."""
    import jax

    from pairgrpo_jax.lm import Policy, load_model, save_pretrained, score

    model = load_model(name)
    save_pretrained(model, model.params, folder)
    batch = to_batch(make_batch(model.config.vocab_size))
    logp = jax.jit(lambda params: score(Policy(model, params), *batch.tokens).logp)(model.params)
    old = np.asarray(logp, np.float64).reshape(GROUPS * SAMPLES, NEW_TOKENS)
    (folder / "batch.json").write_text(json.dumps(make_batch(model.config.vocab_size, old)))


@contextlib.contextmanager
def sides(args: Comparison, folder: Path, dtype: str) -> Iterator[tuple[Side, Side]]:
    """Both processes, fresh, ended afterwards."""
    mine = [sys.executable, "-m", "experiments.benchmarks.align", "--ours", str(folder), "--dtype", dtype]
    peer = [str(args.peer_python), str(Path(__file__).with_name(f"align_{args.peer}.py")), str(folder), dtype]
    with started(mine + ["--remat"] * args.remat, peer, folder) as both:
        yield both


def compare_losses(args: Comparison, folder: Path, dtype: str) -> float:
    """Prints losses and gradient norms of every setting; returns the largest difference."""
    worst = 0.0
    with sides(args, folder, dtype) as both:
        for setting in SETTINGS:
            (loss, norm), (peer_loss, peer_norm) = (side.ask(f"loss {setting}") for side in both)
            gaps = {"loss_gap": abs(loss - peer_loss), "grad_norm_gap": abs(norm / peer_norm - 1)}
            worst = max(worst, *gaps.values())
            values = {"loss": loss, "peer_loss": peer_loss, "grad_norm": norm, "peer_grad_norm": peer_norm}
            report(peer=args.peer, dtype=dtype, setting=setting, **values, **gaps)
    return worst


def compare_cost(args: Comparison, folder: Path) -> None:
    """Prints seconds and peak memory of an update."""
    with sides(args, folder, "float32") as both:
        mine, theirs = (statistics.median(x) for x in zip(*in_turns(both, "step", args.repeats)))
        memory = [side.ask("memory") for side in both]
    values = {"seconds": mine, "peer_seconds": theirs, "ratio": theirs / mine}
    report(peer=args.peer, **values, peak_mib=memory[0], peer_peak_mib=memory[1])


def main() -> int:
    """Compares losses first, then, in fresh processes, times and memory."""
    args = tyro.cli(Comparison, description=__doc__)
    if args.ours is not None:
        answer_as_ours(args.ours, args.dtype, args.remat)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report(processor=processor.label())
        write_inputs(folder, args.model)
        worst, *_ = [compare_losses(args, folder, dtype) for dtype in PRECISIONS[args.peer]]
        compare_cost(args, folder)
    return int(worst > args.tolerance)


if __name__ == "__main__":
    run_main(main)
