"""Adapters as PEFT writes and reads them: equal logits both ways, and refusals by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pairgrpo_jax.commands import generate
from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.files.peft import CONFIG, load_peft, save_peft
from pairgrpo_jax.lm.models import lora

from .conftest import config_fields, tiny_model, torch_model

TOKENS = np.random.default_rng(0).integers(3, 97, (2, 9))
WEIGHTS = "adapter_model.safetensors"


def random_adapters(config, model, seed=1):
    adapters = lora.init(config, model.config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def logits(model, what, adapters):
    return model.apply(model.params, jnp.asarray(TOKENS), lora=lora.variables(what, adapters))


def base_folder(family, folder):
    """The tiny model of `transformers` as a folder, and loaded by us."""
    torch_model(config_fields(family)).save_pretrained(folder)
    return load_model(folder)


EXPORTS = [
    ("llama", ("q", "v"), 4, 8.0),
    ("llama", lora.TARGETS, 3, 5.0),
    ("qwen3", ("k", "o", "down"), 2, 2.0),
    ("gemma2", ("gate",), 5, 1.0),
    ("gpt2", ("q", "k", "v", "o"), 3, 6.0),  # one layer in the checkpoint; the MLP has a c_proj too
    ("gpt2", ("up", "v"), 2, 4.0),
    ("phi3", ("q", "v", "gate", "up", "down"), 2, 3.0),
]


@pytest.mark.parametrize(("family", "targets", "rank", "alpha"), EXPORTS)
def test_peft_loads_our_adapters_with_equal_logits(tmp_path, family, targets, rank, alpha):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = base_folder(family, tmp_path / "base")
    what = lora.LoraConfig(rank, alpha, targets=tuple(targets))
    adapters = random_adapters(what, model)
    save_peft(tmp_path / "adapter", model.config, what, adapters, base=str(tmp_path / "base"))
    ours = logits(model, what, adapters)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(TOKENS)).logits.numpy(), ours, atol=2e-4)
    assert np.abs(np.asarray(ours - model.apply(model.params, jnp.asarray(TOKENS)))).max() > 0.1
    np.testing.assert_allclose(logits(model, *load_peft(tmp_path / "adapter", model.config)), ours, atol=1e-5)
    merged = load_model(tmp_path / "adapter")
    np.testing.assert_allclose(merged.apply(merged.params, jnp.asarray(TOKENS)), ours, atol=2e-4)


def test_adapters_of_single_layers_come_back_as_they_were(tmp_path, tiny):
    what = lora.LoraConfig(3, 6.0, 0.1, ("q", "o", "up"))
    adapters = random_adapters(what, tiny)
    save_peft(tmp_path, tiny.config, what, adapters, base="owner/name")
    again, read = load_peft(tmp_path, tiny.config)
    assert again == what
    jax.tree.map(np.testing.assert_array_equal, read, adapters)


IMPORTS = [
    ("llama", {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16}),
    ("llama", {"target_modules": "all-linear", "r": 2, "use_rslora": True}),
    ("llama", {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"k_proj": 3}}),
    ("llama", {"target_modules": ["down_proj", "lm_head"], "layers_to_transform": None, "lora_dropout": 0.1}),
    ("llama", {"target_modules": ["o_proj"], "layers_to_transform": [1]}),
    ("llama", {"target_modules": r".*layers\.[02]\.mlp\.up_proj", "init_lora_weights": "gaussian"}),
    ("gpt2", {"target_modules": ["c_attn"], "r": 3, "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["mlp.c_proj"], "fan_in_fan_out": True}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "r": 4}),
    ("qwen2", {"target_modules": ["q_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]}),
]


@pytest.mark.parametrize(("family", "options"), IMPORTS)
def test_adapters_of_peft_are_read_with_equal_logits(tmp_path, family, options):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    model = base_folder(family, tmp_path / "base")
    oracle = torch_model(config_fields(family))
    oracle.name_or_path = str(tmp_path / "base")
    adapted = peft.get_peft_model(oracle, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn_like(p))
        want = adapted(torch.tensor(TOKENS)).logits.numpy()
    adapted.save_pretrained(tmp_path / "adapter")
    what, adapters = load_peft(tmp_path / "adapter", model.config)
    np.testing.assert_allclose(logits(model, what, adapters), want, atol=2e-4)
    lora.check(what, model.config)
    assert what.dropout == options.get("lora_dropout", 0.0)
    merged = load_model(tmp_path / "adapter")
    np.testing.assert_allclose(merged.apply(merged.params, jnp.asarray(TOKENS)), want, atol=2e-4)


@pytest.fixture
def adapter(tmp_path, tiny):
    """A folder of adapters beside the folder of their base."""
    save_pretrained(tiny, tiny.params, tmp_path / "base")
    what = lora.LoraConfig(2, targets=("q",))
    save_peft(tmp_path / "adapter", tiny.config, what, random_adapters(what, tiny), base=str(tmp_path / "base"))
    return tmp_path / "adapter"


def edit(folder, **changes):
    fields = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' = 'pissa'"),
        ({"init_lora_weights": "olora"}, "'init_lora_weights' = 'olora'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({"bias": "all"}, "'bias' = 'all'"),
        ({"peft_type": "IA3"}, "'peft_type' = 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "'task_type' = 'SEQ_CLS'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"r": 3}, "rank 2, and adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": 7}}, "says 7"),
        ({"base_model_name_or_path": None}, "name the model they go on"),
        ({"base_model_name_or_path": "nowhere"}, "'base_model_name_or_path' = 'nowhere': nowhere: no such folder"),
        ({"something_new": {"on": True}}, "something_new"),
        ({"lora_alpha": float("nan")}, "'lora_alpha' = nan"),
        ({"lora_alpha": 10**400}, "field 'lora_alpha'"),
        ({"rank_pattern": {"q_(proj": 2}}, "'rank_pattern' = {'q_(proj': 2}: 'q_(proj' is no regular expression"),
        ({"rank_pattern": {"q" * 201: 2}}, "expected patterns of at most 200 characters"),
        (
            {"alpha_pattern": {"q_proj": "8"}},
            "field 'alpha_pattern' = {'q_proj': '8'}: 'q_proj': expected a finite number",
        ),
        ({"alpha_pattern": {"q_proj": None}}, "field 'alpha_pattern'"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "field 'alpha_pattern'"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter, changes, words):
    edit(adapter, **changes)
    with pytest.raises(ValueError, match="adapter") as error:
        load_model(adapter)
    assert words in str(error.value), error.value


def test_adapters_that_go_on_themselves_are_refused(adapter, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    edit(adapter, base_model_name_or_path=str(other))
    for base in (other, adapter):
        (other / CONFIG).write_text(json.dumps({"base_model_name_or_path": str(base)}))
        with pytest.raises(ValueError, match="these adapters go on themselves; name a model") as error:
            load_model(adapter)
        assert f"{other / CONFIG}: field 'base_model_name_or_path' = '{base}': these" in str(error.value)


def test_adapters_may_go_on_adapters(adapter, tmp_path, tiny):
    what = lora.LoraConfig(2, targets=("v",))
    save_peft(tmp_path / "second", tiny.config, what, random_adapters(what, tiny, seed=2), base=str(adapter))
    one, two = load_model(adapter).params, load_model(tmp_path / "second").params
    same = jax.tree.map(np.array_equal, one, two)["layers"]["attn"]
    assert same["q"]["kernel"] and not same["v"]["kernel"]


def test_a_scale_of_0_is_one(adapter, tiny):
    edit(adapter, lora_alpha=0)
    assert jax.tree.all(jax.tree.map(np.array_equal, load_model(adapter).params, tiny.params))


def test_unknown_fields_of_adapters_can_be_ignored(adapter, run_here):
    edit(adapter, something_new=3)
    assert "--ignore-fields something_new" in run_here(generate.main, "--model", adapter).stderr
    load_model(adapter, ignore_fields=("something_new",))


@pytest.mark.parametrize("kind", ["missing", "broken", "other layer", "embedding", "no B", "shape"])
def test_adapters_that_do_not_fit_are_refused_by_name(adapter, tiny, kind):
    path = adapter / WEIGHTS
    tensors = load_file(path)
    first = sorted(tensors)[0]
    if kind == "missing":
        path.rename(path.with_name("adapter_model.bin"))
    elif kind == "broken":
        path.write_bytes(b"x")
    else:
        value = tensors.pop(first)
        name = {
            "other layer": first.replace("layers.0", "layers.9"),
            "embedding": first.replace("lora_A", "lora_embedding_A"),
        }
        if kind != "no B":
            tensors[name.get(kind, first)] = value if kind != "shape" else value[:, :5].copy()
        save_file(tensors, path)
    named = "adapter_model.bin: pickled adapters are never loaded" if kind == "missing" else WEIGHTS
    with pytest.raises(ValueError, match=named):
        load_peft(adapter, tiny.config)


def test_a_tokenizer_beside_the_adapters_is_theirs(adapter, tiny):
    from .test_real_files import byte_tokenizer

    assert load_model(adapter).tokenizer is None
    model = tiny_model("llama", 0)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ValueError, match="ids go up to 255"):
        load_model(adapter)  # of 97 rows
    assert model.config == tiny.config
