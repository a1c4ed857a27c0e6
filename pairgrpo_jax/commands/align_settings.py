"""The settings of `pairgrpo align`, and the preset of each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pairgrpo_jax.commands.judging import OPENAI, Asking, Comparing
from pairgrpo_jax.commands.rewards import require_files
from pairgrpo_jax.commands.runs import FREE
from pairgrpo_jax.commands.spelled import command_of
from pairgrpo_jax.commands.words import peek
from pairgrpo_jax.core.bounds import Above, AtLeast, Seed, Settings, require_idle
from pairgrpo_jax.lm.alignment import Adapters, AlignConfig, tuned, tuned_for_sums
from pairgrpo_jax.lm.data.gym import PREFIX
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.rewards.reward_model import SHIPPED
from pairgrpo_jax.methods import METHODS
from pairgrpo_jax.training.services import Tracking

LABELS = tuple(m.name for m in METHODS) + tuple(f"{m.name}-offline" for m in METHODS if m.online and m.offline)
DECIDING = ("data", "reward", "judge", "lora_rank")
"""Options on which the preset depends."""
OWN = "verify:own"
SUMS = f"{PREFIX}chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
SUMS_SYSTEM = "You calculate. The answer may be negative, such as -1, -2, -3, -4, -5 or -6."


@dataclass(frozen=True)
class Judging(Settings):
    """Who judges samples while training."""

    reward: str = "harmless-a"
    """A reward model (a shipped name, or a .safetensors of pairgrpo reward-model); verify:math, verify:number or
    verify:choice against the column answer, verify:format=REGEX, verify:own with reasoning-gym; module:function of
    yours (several as module:f=0.7,verify:math=0.3); judge:module:function that compares two replies, or
    judge:openai:MODEL, one behind OPENAI_BASE_URL with OPENAI_API_KEY."""
    reward_timeout: Annotated[float | None, Above(0)] = None
    """Seconds that your reward function may take for a batch, or a judge for a question."""
    reward_retries: Annotated[int, AtLeast(0)] = 0
    """More tries after it fails."""
    reward_on_error: Literal["raise", "skip"] = "raise"
    """Then: stop with a checkpoint, or skip the groups concerned and count them. A judge's verdicts are kept."""
    comparing: Comparing | None = None
    asking: Asking | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.reward.startswith("judge:") != (self.comparing is not None):
            raise ValueError("comparing: a judge compares replies, and a reward does not")
        if self.reward.startswith(OPENAI) != (self.asking is not None):
            raise ValueError(f"asking: for {OPENAI}MODEL alone")
        for name in () if ":" in self.reward else ("reward_timeout", "reward_retries", "reward_on_error"):
            require_idle(self, name, "with a reward model, which is computed here")


@dataclass(frozen=True)
class Run(Settings):
    """One run of one method on one model."""

    model: str = "smollm2"
    """A folder, a .gguf file, a hub id, or smollm2."""
    ignore_fields: tuple[str, ...] = ()
    """Fields of the model's config to load without, that are not implemented here."""
    end_of_turn: str | None = None
    """The token that ends a reply, if not what the chat template writes after one."""
    data: str = "tiny"
    """Prompts or preferences: tiny (ships with the package), a .jsonl[.gz], .json[.gz] or .parquet file, a hub id; or
    endless problems, reasoning-gym:NAME?option=value&option=value."""
    split: str = "train"
    """Split of the data; in a folder, the files with this word in their name, or all. Rows of the half that the judge
    was fitted on are left out; of the others a fifth, by first turn, is held out."""
    prompt_column: str | None = None
    """Column of the data that holds the prompt, where it is not called prompt. The others reach your reward function or
    judge, if it has a parameter of their name."""
    system: str | None = None
    """A system message, put before prompts that have none."""
    judge: str = "other"
    """Held-out reward head for the win rate, another than the reward; other: the head of the other half of the reward's
    data (NAME-b for NAME-a, b for a), for functions harmless-b with smollm2, none with other models or with verifiers;
    empty: none."""
    iterations: Annotated[int, AtLeast(1)] = 24
    """Batches."""
    seed: Seed = 0
    """Of sampling, adapters and the order of data."""
    output: Path = Path("runs/align")
    """Folder for everything the run leaves."""
    resume: bool = False
    """Go on with the run in `output`, bit for bit as if it had not stopped; start it if there is none."""
    evaluations: Annotated[int, AtLeast(1)] = 1
    """Evaluations over the run."""
    evaluation_prompts: Annotated[int, AtLeast(1)] = 32
    """Held-out prompts of each."""
    evaluation_samples: Annotated[int, AtLeast(1)] = 8
    """Replies to each prompt."""
    evaluation_temperature: Annotated[float | None, Above(0)] = None
    """Of these replies, and of the KL to the start that they estimate; None: as in training."""
    evaluation_pairs: Annotated[int, AtLeast(1)] = 64
    """Held-out preference pairs of each (offline), and labelled pairs that the judge's own accuracy is measured on."""
    save_every: Annotated[int, AtLeast(1)] = 4
    """Iterations between checkpoints; every evaluation makes one too."""
    keep: Annotated[int, AtLeast(1)] = 2
    """Newest checkpoints kept, besides the best."""
    async_saves: bool = False
    """Write them while the run goes on; it waits only until its state is copied, and for the one before."""
    checkpoints: str | None = None
    """Where they are: a folder, or `gs://bucket/folder` (extra `gcs`); None: `checkpoints` in `output`."""
    shown: Annotated[int, AtLeast(1)] = 8
    """Replies on the page, first samples of the evaluation."""
    show_times: bool = False
    """Where the seconds of a batch went, on the progress line; every row of metrics.jsonl has them, as time/PART."""
    export: bool = True
    """Write the trained model, adapters merged, as safetensors; adapters also on their own, for PEFT."""
    exported: Literal["last", "best"] = "last"
    """The state that is written: at the end, or the checkpoint with the best score. A finished run, too, with
    --resume --exported best."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters and optimizer are float32."""
    operands: Literal["bfloat16"] | None = None
    """Rounds the operands of products with the parameters, whose sums stay float32; None: as dtype. For accelerators
    and processors with avx512_bf16 or amx_bf16."""
    remat: bool = False
    """Recompute layers in the backward pass, for memory."""
    tracker: tuple[Tracking, ...] = ()
    """Services that hear of the run besides its folder: wandb, mlflow, trackio; their own settings say where."""
    mesh: Literal["none", "data", "fsdp"] = "none"
    """Use all devices: parameters replicated (data) or fully sharded (fsdp)."""
    chat: Chat = field(default_factory=Chat)
    judging: Judging | None = field(default_factory=Judging)
    config: AlignConfig = field(default_factory=tuned)

    length: ClassVar[str] = "iterations"  # the setting that says how long a run is

    def __post_init__(self):
        super().__post_init__()
        if self.evaluations > self.iterations:
            raise ValueError(f"evaluations={self.evaluations} must be at most iterations={self.iterations}")
        if self.exported != "last" and not self.export:
            raise ValueError(f"exported={self.exported!r} has no effect with --no-export")
        if self.config.online != (self.judging is not None):
            raise ValueError("judging: samples are judged, and a data set's pairs are not")
        if self.dtype == "bfloat16":
            require_idle(self, "operands", "with dtype='bfloat16', of which operands are then")
        require_files(self, self.data, "split", "prompt_column", "evaluation_pairs")
        if self.compares and self.config.method.has("scheme"):
            for name in ("scheme", "margin"):
                require_idle(self.config.method, name, "with a judge, which gives pairs")
        if self.unscored:
            self._require_no_scores()
        if self.reward and same_head(judge := judge_of(self), self.reward):
            raise ValueError(
                f"judge={judge!r} is the reward itself, and nothing would be held out; name another, or ''"
            )

    def _require_no_scores(self) -> None:
        for name in ("evaluation_prompts", "evaluation_samples"):
            require_idle(self, name, "where nobody scores replies (--judge): --shown says how many are made")
        if self.exported == "best" and self.config.online and not self.config.sft_iterations:
            why = "a judge of pairs scores no held-out reply, so no checkpoint is the best"
            raise ValueError(f"exported='best': {why}; name a held-out head with --judge, or leave it at 'last'")

    @property
    def reward(self) -> str:
        """Who judges samples; nobody offline."""
        return "" if self.judging is None else self.judging.reward

    @property
    def compares(self) -> bool:
        """Whether who judges samples compares two replies, and gives no rewards."""
        return self.judging is not None and self.judging.comparing is not None

    @property
    def gives_rewards(self) -> bool:
        """Whether who judges samples gives numbers; nobody does offline."""
        return bool(self.reward) and not self.compares

    @property
    def unscored(self) -> bool:
        """Whether nobody gives a number to a held-out reply: no reward, and no held-out head."""
        return not self.gives_rewards and not judge_of(self)

    @property
    def label(self) -> str:
        """The method, as the command line has it."""
        method = self.config.method
        return f"{method.name}-offline" if method.online and not self.config.online else method.name

    @property
    def command(self) -> str | None:
        """The command line that makes it again; None where no words give its settings."""
        return command_of(self, "pairgrpo align", preset, DECIDING)

    @property
    def free(self) -> tuple[str, ...]:
        """Settings that may differ on resume; without annealing, a run can be given more batches."""
        return FREE if self.config.optimizer.anneal else (*FREE, self.length)


def preset(label: str, words: Sequence[str] = ()) -> Run:
    """The run of a method, `NAME` or `NAME-offline`, as it is tuned: sums, unless words name other data or a reward.

    Problems that are made are checked by what made them.
    """
    name, _, offline = label.partition("-")
    config = tuned(name, bool(offline))
    if not config.online:
        return Run(config=config, judging=None)
    data, reward = peek(words, "data", ""), peek(words, "reward", "")
    if not reward and (not data or data.startswith(PREFIX)):
        reward = OWN
    if reward != OWN or not (data or SUMS).startswith(SUMS.partition("?")[0]):
        return Run(config=config, judging=judging_of(reward or Judging.reward), judge=peek(words, "judge", Run.judge))
    config = tuned_for_sums(name)
    if peek(words, "lora-rank", "") == "0":
        config = config.replace(lora_rank=0, lora_targets=Adapters.lora_targets)
    run = Run(data=SUMS, system=SUMS_SYSTEM, judging=Judging(OWN), config=config)
    return run.replace(iterations=48, evaluations=6, evaluation_samples=4, evaluation_temperature=1.0)


def judging_of(reward: str) -> Judging:
    """The settings that a reward of this name has; servers are asked again, as they can be busy."""
    if reward.startswith(OPENAI):
        return Judging(reward, 60.0, 5, comparing=Comparing(), asking=Asking())
    return Judging(reward, comparing=Comparing() if reward.startswith("judge:") else None)


def judge_of(run: Run) -> str:
    """The name of the held-out head; empty for none. ValueError for a reward head without another half beside it."""
    if run.judge != "other":
        return run.judge
    if run.reward in SHIPPED or run.reward.endswith(".safetensors"):
        return other_half(run.reward)
    return "harmless-b" if run.model == "smollm2" and "verify:" not in run.reward else ""


def same_head(one: str, other: str) -> bool:
    """Whether two names are of one reward head, a copy of it too."""
    files = Path(one), Path(other)
    return one == other or (all(map(Path.is_file, files)) and files[0].read_bytes() == files[1].read_bytes())


def other_half(reward: str) -> str:
    """The head that `pairgrpo reward-model` made beside this one, on the other half of the same data.

    Raises:
      ValueError: for a file whose name says no half, or that lies alone.
    """
    path = Path(reward)
    rest, half = path.stem[:-1], path.stem[-1:]
    if half not in ("a", "b") or rest[-1:].isalnum():
        raise ValueError(f"judge: {reward} is no half a or b of its data by its name; name a judge, or '' for none")
    sibling = path.with_name(f"{rest}{'b' if half == 'a' else 'a'}{path.suffix}")
    if path.is_file() and not sibling.is_file():
        raise ValueError(f"judge: {sibling}, the other half of {reward}, does not exist; name a judge, or '' for none")
    return str(sibling)
