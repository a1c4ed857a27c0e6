"""A tiny model over bytes with a tokenizer and a chat template, for tests that need texts."""

import jax

TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}a{% endif %}"


def write_model(folder, positions=128, template=TEMPLATE):
    """A Llama of one layer over the 256 bytes, and its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from pairgrpo_jax.lm import save_pretrained
    from pairgrpo_jax.lm.models.model import Model, read_config
    from pairgrpo_jax.lm.models.params import init_params

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<end>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)
    fields = {"model_type": "llama", "vocab_size": 257, "hidden_size": 16, "intermediate_size": 16}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "eos_token_id": 256}
    fields["max_position_embeddings"] = positions
    config = read_config(fields, "config.json")
    save_pretrained(Model(config, None, fast, fields), init_params(config, jax.random.key(0)), folder)
