"""Measures the language models: speed beside torch, scoring memory.

    python -m experiments.benchmarks.lm speed [--peer-python /path/to/python]
    python -m experiments.benchmarks.lm refill
    python -m experiments.benchmarks.lm scoring
    python -m experiments.benchmarks.lm loading
    python -m experiments.benchmarks.lm first-token [--peer-python /path/to/python]

Both sides of `speed` run in turns, on the same machine, weights and tokens; the peer is
`transformers` on torch in a process of its own. The fastest turn of each counts. `cpu_seconds` add up
the cores a process used: they and their ratio stay the same when other programs take part of the
machine. Every line printed is JSON.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pairgrpo_jax.commands import processor
from pairgrpo_jax.commands.cli import run_main

MATMUL = 2048


@dataclasses.dataclass(frozen=True)
class Work:
    """How much the two sides of `speed` generate, and train on."""

    prompts: int = 8
    samples: int = 8
    prompt_tokens: int = 48
    new_tokens: int = 64
    rows: int = 8
    steps: int = 128


@dataclasses.dataclass(frozen=True)
class Speed:
    """Generation and forward + backward (by `score`, as updates do) of SmolLM2-135M, ours and torch's.

    In float32, or with bfloat16 in our products and in all of torch's model.
    """

    work: tyro.conf.OmitArgPrefixes[Work] = Work()
    model: str = "smollm2"
    operands: Literal["bfloat16"] | None = None
    peer_python: Path = Path(sys.executable)
    repeats: int = 3


@dataclasses.dataclass(frozen=True)
class Refill:
    """Sentences of SmolLM2-135M: rows that end give their place to the next, beside the whole batch at once."""

    slots: tuple[int, ...] = (64, 32, 16)
    samples: int = 16
    new_tokens: int = 96
    repeats: int = 3


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Peak memory of scoring with a gradient, against the form that holds `[B, T, V]`."""

    prompts: int = 4
    samples: int = 4
    prompt_tokens: int = 64
    completion_tokens: int = 128


@dataclasses.dataclass(frozen=True)
class Loading:
    """Peak host memory of loading safetensors, beside the size of the parameters."""

    model: str = "smollm2"
    shard_bytes: int = 10**8


@dataclasses.dataclass(frozen=True)
class FirstToken:
    """Seconds from the start of a process to the first token of a GGUF model, ours and transformers', in turns."""

    model: str = "smollm2"
    prompt: str = "The capital of France is"
    peer_python: Path = Path(sys.executable)
    repeats: int = 5


@dataclasses.dataclass(frozen=True)
class Peer:
    """What `speed` starts in the peer's process; not for the command line."""

    folder: Path
    operands: str | None = None
    work: tyro.conf.OmitArgPrefixes[Work] = Work()


def tokens_of(rows: int, steps: int, vocab: int) -> list[list[int]]:
    """Returns fixed token ids, the same in both processes."""
    return [[(7919 * (i * steps + j) + 13) % (vocab - 20) + 20 for j in range(steps)] for i in range(rows)]


def report(**values) -> None:
    """Prints one line of JSON."""
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}))


def share_of_peak(rate: float, peak: float) -> float:
    """Returns rate / peak; RuntimeError where it is above 1, and the peak was none."""
    if rate > peak:
        raise RuntimeError(
            f"a share of {rate / peak:.0%}: {rate:.0f} GFLOP/s is above the {peak:.0f} of the matrix product, "
            "which was measured while something else ran; run it again on a quiet machine"
        )
    return rate / peak


def timed(f: Callable[[], object]) -> tuple[float, float]:
    """Returns how many seconds a call takes, and how many of all cores of this process."""
    start, cpu = time.perf_counter(), time.process_time()
    f()
    return time.perf_counter() - start, time.process_time() - cpu


def our_tasks(folder: Path, work: Work, operands: str | None) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by name, in JAX."""
    import jax
    import jax.numpy as jnp

    from pairgrpo_jax.lm import Policy, generate, load_model, score

    model = load_model(folder, operands=operands)
    prompts = tokens_of(work.prompts, work.prompt_tokens, model.config.vocab_size)
    batch = jnp.asarray(tokens_of(work.rows, work.steps + 1, model.config.vocab_size))
    lengths = jnp.ones(work.rows, jnp.int32)
    texts = batch[:, :1], lengths, batch[:, None, 1:], work.steps * lengths[:, None]
    options = {"max_new_tokens": work.new_tokens, "num_samples": work.samples, "stop_ids": ()}

    def loss(params):
        return -score(Policy(model, params), *texts).logp.mean()

    step = jax.jit(jax.value_and_grad(loss))
    x = jnp.ones((MATMUL, MATMUL), operands)
    matmul = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    return {
        "generate": lambda: generate(model, model.params, prompts, key=jax.random.key(0), **options),
        "train": lambda: jax.block_until_ready(step(model.params)),
        "matmul": lambda: matmul(x, x).block_until_ready(),
    }


def torch_tasks(folder: Path, work: Work, operands: str | None) -> dict[str, Callable[[], object]]:
    """Returns what is timed, by name, in torch."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, operands or "float32")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    prompts = torch.tensor(tokens_of(work.prompts, work.prompt_tokens, model.config.vocab_size))
    batch = torch.tensor(tokens_of(work.rows, work.steps, model.config.vocab_size))
    options = {"max_new_tokens": work.new_tokens, "min_new_tokens": work.new_tokens, "top_k": 0}
    options |= {"num_return_sequences": work.samples, "do_sample": True, "top_p": 1.0}

    def train():
        model.zero_grad()
        model(batch, labels=batch, use_cache=False).loss.backward()

    x = torch.ones(MATMUL, MATMUL, dtype=dtype)
    mask = torch.ones_like(prompts)
    return {
        "generate": lambda: model.generate(prompts, attention_mask=mask, **options),
        "train": train,
        "matmul": lambda: x @ x,
    }


def peer(args: Peer) -> None:
    """Answers each task named on stdin with the seconds it took."""
    tasks = torch_tasks(args.folder, args.work, args.operands)
    print("ready", flush=True)
    for line in sys.stdin:
        print("seconds", *timed(tasks[line.strip()]), flush=True)


def speed(args: Speed) -> None:
    """Times both sides in turns and prints the fastest, ratios and shares of the matmul peak (of first and last)."""
    import jax

    from pairgrpo_jax.lm import load_model, save_pretrained

    if args.operands is not None:
        processor.require_bfloat16("operands")
    temporary = tempfile.TemporaryDirectory()
    folder = Path(temporary.name)
    model = load_model(args.model)
    save_pretrained(model, model.params, folder)
    size = sum(x.size for x in jax.tree.leaves(model.params))
    work = args.work
    command = [str(args.peer_python), "-m", "experiments.benchmarks.lm", "peer", "--folder", str(folder)]
    for name, value in dataclasses.asdict(work).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += [] if args.operands is None else ["--operands", args.operands]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None and stdout is not None

    def answer() -> str:
        while line := stdout.readline():
            if line.startswith(("ready", "seconds")):
                return line
        raise RuntimeError("the peer process ended early")

    def ask(task: str) -> tuple[float, ...]:
        stdin.write(task + "\n")
        stdin.flush()
        return tuple(map(float, answer().split()[1:]))

    answer()
    tasks = our_tasks(folder, work, args.operands)
    flops = {"matmul": 2 * MATMUL**3, "train": 6 * size * work.rows * work.steps}
    flops["generate"] = 2 * size * work.prompts * (work.prompt_tokens + work.samples * work.new_tokens)
    turns = {task: [] for task in flops}
    for task in (*flops, "matmul"):
        timed(tasks[task])  # compile, warm up
        ask(task)
        turns[task] += [(*timed(tasks[task]), *ask(task)) for _ in range(20 if task == "matmul" else args.repeats)]
    report(processor=processor.label(), operands=args.operands or "float32")
    peaks = {}
    for task, work_done in flops.items():
        best = [min(x) for x in zip(*turns[task])]
        seconds = dict(zip(("seconds", "cpu_seconds", "torch_seconds", "torch_cpu_seconds"), best))
        rates = {name: work_done / x / 1e9 for name, x in zip(("gflops", "cpu_gflops"), best)}
        peaks = peaks or rates
        ratios = {"ratio": best[2] / best[0], "cpu_ratio": best[3] / best[1]}
        shares = {f"{name}_share_of_peak": share_of_peak(rates[name], peaks[name]) for name in rates}
        report(task=task, **seconds, **ratios, **rates, **shares)
        if task == "generate":
            count = work.prompts * work.samples * work.new_tokens
            report(tokens_per_second=count / best[0], torch_tokens_per_second=count / best[2])
    stdin.close()
    process.wait()
    temporary.cleanup()


BEGINNINGS = (
    "The old house by the river",
    "In the year 1905",
    "My grandmother told me that",
    "The most important thing",
)


def refill(args: Refill) -> None:
    """Prints tokens a second of each number of slots, and the ratio to the whole batch; the fastest turn counts."""
    import jax

    from pairgrpo_jax.lm import generate, load_model

    model = load_model("smollm2")
    prompts, ends = (model.tokenizer(list(texts))["input_ids"] for texts in (BEGINNINGS, (".", "!", "?", "\n")))
    options = {"max_new_tokens": args.new_tokens, "num_samples": args.samples, "stop_ids": [end[0] for end in ends]}
    turns, outs = {slots: [] for slots in (None, *args.slots)}, {}

    def run(slots: int | None) -> None:
        outs[slots] = generate(model, model.params, prompts, key=jax.random.key(0), slots=slots, **options)

    for turn in range(args.repeats + 1):
        for slots, times in turns.items():
            spent = timed(lambda slots=slots: run(slots))
            times += [spent] * (turn > 0)  # the first compiles
    best = {slots: [min(x) for x in zip(*times)] for slots, times in turns.items()}
    lengths = outs[None].lengths
    report(
        processor=processor.label(), rows=lengths.size, mean_length=float(lengths.mean()), longest=int(lengths.max())
    )
    for slots, (seconds, cpu_seconds) in best.items():
        rates = {"tokens_per_second": float(lengths.sum()) / seconds, "cpu_seconds": cpu_seconds}
        ratios = {"ratio": best[None][0] / seconds, "cpu_ratio": best[None][1] / cpu_seconds}
        same = float((outs[slots].tokens == outs[None].tokens).all(-1).mean())
        report(slots=slots, seconds=seconds, **rates, **ratios, same_texts=same)


def scoring(args: Scoring) -> None:
    """Prints the temporary memory XLA needs for a gradient of both forms."""
    import jax
    import jax.numpy as jnp

    from pairgrpo_jax.lm import Policy, score
    from pairgrpo_jax.lm.models.model import Model
    from pairgrpo_jax.lm.models.params import abstract_params

    model = Model(smollm2_config(), None, remat=True)
    b, k, p, t = args.prompts, args.samples, args.prompt_tokens, args.completion_tokens
    batch = [jax.ShapeDtypeStruct(s, jnp.int32) for s in ((b, p), (b,), (b, k, t), (b, k))]

    def chunked(params, *batch):
        return score(Policy(model, params), *batch).logp.sum()

    def naive(params, prompts, _, completions, lengths):
        rows = completions.reshape(b * k, t)
        texts = jnp.concatenate([jnp.repeat(prompts, k, axis=0), rows], axis=1)
        log_probs = jax.nn.log_softmax(model.apply(params, texts))[:, p - 1 : -1]
        return jnp.take_along_axis(log_probs, rows[..., None], -1).sum()

    sizes = {}
    for name, f in (("chunked", chunked), ("naive", naive)):
        compiled = jax.jit(jax.grad(f)).lower(abstract_params(model.config), *batch).compile()
        memory: Any = compiled.memory_analysis()
        sizes[name] = memory.temp_size_in_bytes / 2**20
    report(**{f"{k}_mib": v for k, v in sizes.items()}, ratio=sizes["chunked"] / sizes["naive"])


def smollm2_config():
    """Returns SmolLM2-135M's config, without its weights."""
    from pairgrpo_jax.lm.models.model import read_config

    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
    sizes |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    fields = {"model_type": "llama", **sizes, "rope_theta": 1e5, "tie_word_embeddings": True}
    return read_config(fields | {"max_position_embeddings": 8192}, "smollm2")


_LOAD = """
import json, re, sys, time
import jax
from pathlib import Path
from pairgrpo_jax.lm import load_model
from pairgrpo_jax.lm.models.model import read_config
from pairgrpo_jax.lm.files.tokenizer import from_folder
folder = Path(sys.argv[1])
read_config(json.loads((folder / "config.json").read_text()), "config.json"), from_folder(folder)  # imports
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
jax.numpy.zeros(1).block_until_ready()
before, start = peak(), time.perf_counter()
params = load_model(folder).params
seconds, grown = time.perf_counter() - start, peak() - before
sizes = [x.nbytes / 2**20 for x in jax.tree.leaves(params)]
print(grown, sum(sizes), max(sizes), seconds)
"""


def loading(args: Loading) -> None:
    """Prints by how much a process grows that loads a model from shards (Linux only).

    On CPU the parameters are part of it; what is left are the copies made on the way.
    """
    from pairgrpo_jax.lm import load_model, save_pretrained

    with tempfile.TemporaryDirectory() as folder:
        model = load_model(args.model)
        save_pretrained(model, model.params, folder, max_shard_bytes=args.shard_bytes)
        shard = max(x.stat().st_size for x in Path(folder).glob("*.safetensors")) / 2**20
        output = subprocess.run([sys.executable, "-c", _LOAD, folder], check=True, capture_output=True)
    grown, total, largest, seconds = map(float, output.stdout.split())
    sizes = {"parameters_mib": total, "shard_mib": shard, "largest_mib": largest}
    copies = {"copies_mib": grown - total, "copies_bound_mib": 1.3 * shard + largest}
    report(peak_mib=grown, bound_mib=1.3 * total + largest, **sizes, **copies, seconds=seconds)


_FIRST = """
import json, sys, time
marks = [time.perf_counter()]
import jax
from pairgrpo_jax.lm import generate, load_model
marks.append(time.perf_counter())
model = load_model(sys.argv[1])
marks.append(time.perf_counter())
ids = model.tokenizer(sys.argv[2])["input_ids"]
out = generate(model, model.params, [ids], max_new_tokens=1, key=jax.random.key(0), temperature=0.0, stop_ids=())
print(json.dumps([int(out.tokens[0, 0, 0]), *(b - a for a, b in zip(marks, [*marks[1:], time.perf_counter()]))]))
"""
_PEER_FIRST = """
import json, sys, time
from pathlib import Path
marks = [time.perf_counter()]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
marks.append(time.perf_counter())
options = {"pretrained_model_name_or_path": Path(sys.argv[1]).parent, "gguf_file": Path(sys.argv[1]).name}
tokenizer = AutoTokenizer.from_pretrained(**options)
model = AutoModelForCausalLM.from_pretrained(**options, dtype=torch.float32)
marks.append(time.perf_counter())
ids = tokenizer(sys.argv[2], return_tensors="pt")
out = model.generate(**ids, max_new_tokens=1, do_sample=False)
print(json.dumps([int(out[0, -1]), *(b - a for a, b in zip(marks, [*marks[1:], time.perf_counter()]))]))
"""


def first_token(args: FirstToken) -> None:
    """Prints the medians of both sides, of the whole process and of its parts, and their ratio.

    Raises:
      RuntimeError: if the two first tokens differ.
    """
    from pairgrpo_jax.lm.files.checkpoint import resolve

    sides = {"ours": (sys.executable, _FIRST), "transformers": (str(args.peer_python), _PEER_FIRST)}
    path, turns, tokens = resolve(args.model), {side: [] for side in sides}, set()
    uncached = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    for _ in range(args.repeats):
        for side, (python, code) in sides.items():
            start = time.perf_counter()
            command = [python, "-c", code, str(path), args.prompt]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=uncached)
            token, *parts = json.loads(done.stdout.splitlines()[-1])
            tokens.add(token)
            turns[side].append((time.perf_counter() - start, *parts))
    if len(tokens) > 1:
        raise RuntimeError(f"the first tokens differ: {tokens}")
    medians = {side: [statistics.median(x) for x in zip(*rows)] for side, rows in turns.items()}
    report(processor=processor.label(), model=path.name, repeats=args.repeats)
    for side, values in medians.items():
        report(side=side, **dict(zip(("seconds", "imports", "loading", "first_token"), values)))
    report(ratio=medians["transformers"][0] / medians["ours"][0])


Command = (
    Annotated[Speed, tyro.conf.subcommand("speed")]
    | Annotated[Refill, tyro.conf.subcommand("refill")]
    | Annotated[Scoring, tyro.conf.subcommand("scoring")]
    | Annotated[Loading, tyro.conf.subcommand("loading")]
    | Annotated[FirstToken, tyro.conf.subcommand("first-token")]
    | Annotated[Peer, tyro.conf.subcommand("peer")]
)


def main(args: Speed | Refill | Scoring | Loading | FirstToken | Peer) -> None:
    """Runs one of the measurements."""
    tasks = {Speed: speed, Refill: refill, Scoring: scoring, Loading: loading, FirstToken: first_token, Peer: peer}
    tasks[type(args)](args)


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Command, description=__doc__)))  # pyright: ignore[reportArgumentType]
