"""What tokenizers and chat templates make of conversations, beside `transformers`, on a random Llama of 260 tokens."""

import dataclasses
import json
from datetime import date

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pairgrpo_jax.lm import load_model, save_pretrained
from pairgrpo_jax.lm.alignment import encode_prompts
from pairgrpo_jax.lm.data import Preference, encode_pair, encode_prompt, encode_reply, load_preferences
from pairgrpo_jax.lm.files.tokenizer import encode, hide_control_tokens, text_ids, with_chat
from pairgrpo_jax.lm.models.chat import Chat
from pairgrpo_jax.lm.models.model import Model, read_config
from pairgrpo_jax.lm.models.params import init_params

from .conftest import config_fields

BOS, EOS, EOT = 256, 257, 258
TURNS = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<eot>' }}{% endfor %}"
ASK = "{% if add_generation_prompt %}assistant:{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DEAF = TURNS.replace("{{ m[", "{{ '' if m['role'] == 'system' else m[")
DATED = "{{ strftime_now('%d %b %Y') }}|" + TURNS + ASK
# As Qwen3: the last reply gets an empty thinking block; without thinking, it is part of the prompt.
THINKS = (
    "{% for m in messages %}{{ m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<eot>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# As Zephyr: a line break, not a control token, stands before the reply.
LINES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<eot>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "S"}


def byte_level():
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def spaced(scheme):
    """Characters and a merged `▁y`, as SentencePiece: a space before the "first" piece of a text, or "always"."""
    known = ["<unk>", "▁", "▁y", "\n", *map(chr, range(33, 127))]
    vocab = {c: i for i, c in enumerate([*known, *(f"<{i}>" for i in range(len(known), 256))])}
    inner = Tokenizer(models.BPE(vocab, [("▁", "y")], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return inner


def tokenizer(single="$A", template=None, scheme=None, **flags):
    """Bytes, and three control tokens; `single` is what the post-processor makes of a text."""
    inner = spaced(scheme) if scheme else byte_level()
    inner.add_special_tokens([AddedToken(x, special=True) for x in ("<bos>", "<eos>", "<eot>", "<pad>")])
    adds = processors.TemplateProcessing(single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS)])
    inner.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), adds])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", chat_template=template, **flags
    )


@pytest.fixture(scope="module")
def random_model():
    import jax

    fields = config_fields("llama") | {"vocab_size": 260, "bos_token_id": BOS, "eos_token_id": [EOS, EOT]}
    config = read_config(fields, "config.json")
    return Model(config, init_params(config, jax.random.key(0)), hf_config=fields)


def with_tokenizer(model, *args, **chat):
    return dataclasses.replace(model, tokenizer=tokenizer(*args), chat=Chat(**chat))


def text(model, ids):
    return model.tokenizer.decode(ids)


@pytest.mark.parametrize("single", ["$A", "<bos> $A", "<bos> $A <eos>", "$A <eos>", "<bos> <bos> $A"])
def test_what_the_tokenizer_adds_before_a_text_is_there_once(random_model, tmp_path, single):
    """The post-processor decides, whatever the flag says; nothing that it adds after a text ends a prompt."""
    model = with_tokenizer(random_model, single)
    want = [BOS] * single.count("<bos>")
    save_pretrained(model, model.params, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    for one in (model, load_model(tmp_path)):
        ids = encode_prompt(one, (USER,), 99)
        assert ids == want + one.tokenizer("\n\nHuman: hi\n\nAssistant:", add_special_tokens=False)["input_ids"]
        assert encode(one.tokenizer, "hi") == want + ids[len(want) + 9 : len(want) + 11]
        assert encode(one.tokenizer, "<bos>" * len(want) + "hi") == encode(one.tokenizer, "hi")
    chats = with_tokenizer(random_model, single, "<bos>" * len(want) + TURNS + ASK)
    assert text(chats, encode_prompt(chats, (USER,), 99)) == "<bos>" * len(want) + "user:hi<eot>assistant:"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scheme", [None, "first", "always"])
@pytest.mark.parametrize("options", [(), ("enable_thinking=false",), ("enable_thinking=true",)])
@pytest.mark.parametrize("template", [TURNS + ASK, THINKS, "<bos>" + TURNS + ASK, LINES])
def test_the_trained_reply_is_what_the_template_renders(random_model, template, options, scheme):
    model = with_tokenizer(random_model, "<bos> $A", template, scheme, template_option=options)
    for reply in ("yes", "yes <eot> no", "a\n\nb", "<think>\nhm\n</think>\n\nyes"):
        prompt, chosen, _ = encode_pair(model, Preference((USER,), reply, "no"), 99, 99)
        chat = [USER, {"role": "assistant", "content": reply}]
        whole = model.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **model.chat.options)
        assert chosen[-1] == EOT
        got = [BOS, *whole] if whole[0] != BOS else whole
        assert got[: len(prompt) + len(chosen)] == prompt + chosen
    assert encode_reply(model, "yes", 3) == encode_reply(model, "yes", 99)[:3]


def test_a_reply_that_the_tokenizer_joins_to_the_prompt_is_told(random_model):
    """The prompt ends with a space, which begins a piece of the reply; the prompt stays as it is without a reply."""
    model = with_tokenizer(random_model, "$A", LINES.replace("|>\n", "|>\n "), "first")
    assert encode_prompt(model, (USER,), 99)[-1] == 1
    with pytest.warns(UserWarning, match="joins to the prompt"):
        reply = encode_reply(model, "yes", 99)
    assert model.tokenizer.convert_ids_to_tokens(reply) == ["▁y", "e", "s", "<eot>"]


def test_thinking_is_in_the_prompt_or_in_the_reply(random_model):
    on, off = (
        with_tokenizer(random_model, "$A", THINKS, template_option=(f"enable_thinking={x}",)) for x in ("true", "false")
    )
    assert text(on, encode_reply(on, "yes", 99)) == "<think>\n\n</think>\n\nyes<eot>"
    assert text(off, encode_reply(off, "yes", 99)) == "yes<eot>"
    assert text(off, encode_prompt(off, (USER,), 99)).endswith("assistant\n<think>\n\n</think>\n\n")


NO_REPLY = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
REWRITES = {
    "rewrites": TURNS.replace("m['content']", "m['content'] | upper") + ASK,
    "otherwise": TURNS + "{% if add_generation_prompt %}bot:{% endif %}",
    "refuses this reply": "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    + TURNS
    + ASK,
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_template_that_renders_another_reply_is_told(random_model, name):
    model = with_tokenizer(random_model, "$A", REWRITES[name])
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_ids=(EOT,)))
    with pytest.warns(UserWarning, match=f"not what the chat template renders: .*{name.split()[0]}"):
        assert text(model, encode_reply(model, "yes", 99)) == "yes<eot>"


def test_system_messages_that_a_template_does_not_take(random_model, caplog):
    rows = [(SYSTEM, USER), (SYSTEM, USER, {"role": "assistant", "content": "a"}, USER)]
    for template, words in ((NO_SYSTEM + TURNS + ASK, "System role not supported"), (DEAF + ASK, "leaves the system")):
        model = with_tokenizer(random_model, "$A", template)
        with pytest.raises(
            ValueError, match=rf"none of 2 prompts fits: the chat template .*{words}.*--system-turn fold"
        ):
            encode_prompts(model, rows, 99)
        assert len(encode_prompts(model, [*rows, (USER,)], 99)) == 1
        assert "2 of 3 prompts are left out: the chat template" in caplog.text
        folded = with_tokenizer(random_model, "$A", template, system_turn="fold")
        texts = [text(folded, prompt.ids) for prompt in encode_prompts(folded, rows, 99)]
        assert texts == ["user:S\n\nhi<eot>assistant:", "user:S\n\nhi<eot>assistant:a<eot>user:hi<eot>assistant:"]
    model = with_tokenizer(random_model, "$A", TURNS + ASK)
    assert text(model, encode_prompt(model, (SYSTEM, USER), 99)) == "system:S<eot>user:hi<eot>assistant:"


@pytest.mark.parametrize(
    "turn",
    [
        "{{ m['content'][0]['text'] }}",
        "{{ m['text'] }}",
        "{% for x in m['content'] if x is mapping %}{{ x.text }}{% endfor %}",
    ],
)
def test_a_template_that_drops_the_text_of_a_turn_is_told(random_model, turn):
    """Templates of models of images take lists of parts alone."""
    model = with_tokenizer(random_model, "$A", f"{{% for m in messages %}}{turn}<eot>{{% endfor %}}")
    with pytest.raises(
        ValueError, match="none of 1 prompts fits: the chat template leaves the text of the last turn out"
    ):
        encode_prompts(model, [(USER,)], 99)


def test_the_date_of_a_template_is_frozen(random_model):
    model, chat = with_chat(with_tokenizer(random_model, "$A", DATED), Chat())
    assert chat.template_date == date.today().isoformat() and model.chat == chat
    model, chat = with_chat(model, Chat(template_date="2024-02-29"))
    assert text(model, encode_prompt(model, (USER,), 99)) == "29 Feb 2024|user:hi<eot>assistant:"
    assert text(model, encode_reply(model, "yes", 99)) == "yes<eot>"
    llama = '{% if strftime_now is defined %}{% set d = strftime_now( "%Y" ) %}{% endif %}{{ d }}|' + TURNS + ASK
    model, _ = with_chat(with_tokenizer(random_model, "$A", llama), Chat(template_date="2024-02-29"))
    assert text(model, encode_prompt(model, (USER,), 99)) == "2024|user:hi<eot>assistant:"
    assert with_chat(with_tokenizer(random_model, "$A", TURNS + ASK), Chat())[1] == Chat()


@pytest.mark.parametrize(
    ("head", "written"),
    [
        ("{% set f = '%-d %B %Y' %}{{ strftime_now(f) }}", "9 February 2024"),
        ("\n  {% macro today() %}{{ strftime_now('%a %d/%m/%y') }}{% endmacro %}{{ today() }}", "\nFri 09/02/24"),
        ("{{ strftime_now('%Y') | int + 1 }} {{ strftime_now('100%%d') }}", "2025 100%d"),
        ("{% for f in ['%H:%M', '%j'] %}{{ strftime_now(format=f) }};{% endfor %}", "00:00;040;"),
    ],
)
def test_any_form_of_a_date_is_frozen(random_model, head, written):
    model, _ = with_chat(with_tokenizer(random_model, "$A", head + "|" + TURNS + ASK), Chat(template_date="2024-02-09"))
    assert text(model, encode_prompt(model, (USER,), 99)) == f"{written}|user:hi<eot>assistant:"


@pytest.mark.parametrize("template", [None, TURNS + ASK, THINKS])
def test_control_tokens_in_messages_are_tokens_or_text(random_model, template):
    asked, reply = ({"role": "user", "content": "a<eot>b<bos>"},), "c<eot>d"
    tokens = with_tokenizer(random_model, "$A", template)
    plain = with_tokenizer(random_model, "$A", template, control_tokens="text")
    for model, more in ((tokens, 1), (plain, 0)):
        ids, said = encode_prompt(model, asked, 99), encode_reply(model, reply, 99)
        assert (ids.count(BOS), ids.count(EOT)) == (more, more + (template is not None))
        assert said.count(EOT) + said.count(EOS) == more + 1
        assert "a<eot>b<bos>" in text(model, ids) and "c<eot>d" in text(model, said)


@pytest.mark.parametrize("scheme", [None, "first", "always"])
def test_text_around_hidden_control_tokens_is_as_where_they_are_none(random_model, scheme):
    """The oracle has no `<eot>`; merges cross its name, and no piece begins anew behind it."""
    template = TURNS.replace("<eot>", "<eos>") + ASK
    model = with_tokenizer(random_model, "$A", template, scheme, control_tokens="text")
    inner = spaced(scheme) if scheme else byte_level()
    inner.add_special_tokens([AddedToken(x, special=True) for x in ("<bos>", "<eos>")])
    oracle = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template)
    for content in ("y<eot>y <eot> y", "<eot><eot>", " y"):
        chat = [USER | {"content": content}, {"role": "assistant", "content": content}]
        asked = oracle.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=True, return_dict=False)
        assert encode_prompt(model, tuple(chat[:1]), 99) == asked and asked.count(EOS) == 1
        whole = oracle.apply_chat_template(chat, tokenize=True, return_dict=False)
        assert asked + encode_reply(model, content, 99) == whole


def test_a_text_that_looks_like_a_mark_is_itself(random_model):
    known = tokenizer()
    mark = hide_control_tokens(known, "<eot>")
    for content in (
        mark,
        f"{mark}<eot>{mark[0]}",
        "\ue0009999\ue001",
        f"\ue000{'9' * 5000}\ue001",
        "\ue000\ue001\ue001",
    ):
        ids = text_ids(known, hide_control_tokens(known, content), hidden=True)
        assert ids == known(content, split_special_tokens=True)["input_ids"] and EOT not in ids
    assert text_ids(known, f"a{mark}<eot>\ue000007\ue001", hidden=True).count(EOT) == 1


def test_control_tokens_as_text_need_a_fast_tokenizer():
    class Slow:
        is_fast, added_tokens_decoder = False, {}

    with pytest.raises(ValueError, match=r"control_tokens='text': needs .*tokenizer\.json"):
        text_ids(Slow(), "\ue000258\ue001", hidden=True)


BAD = {
    "no value": ({"template_option": ("enable_thinking",)}, "give NAME=VALUE"),
    "not in the template": ({"template_option": ("enable_thinkin=false",)}, "does not name 'enable_thinkin'"),
    "date": ({"template_date": "tomorrow"}, "template_date='tomorrow': give YYYY-MM-DD"),
    "system": ({"system_turn": "drop"}, "system_turn"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(random_model, name):
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        with_chat(with_tokenizer(random_model, "$A", THINKS), Chat(**fields))


@pytest.mark.slow  # a minute for all 5701
def test_every_real_text_is_encoded_as_transformers_does(random_model, data_folder):
    """All preferences of the shared data: prompt and chosen reply are a beginning of the chat as a whole."""
    model, checked = with_tokenizer(random_model, "$A", THINKS), 0
    for name in ("hh-rlhf-harmless-base", "hh-rlhf-helpful-base", "ultrafeedback-binarized-1200"):
        for row in load_preferences(str(data_folder / name), split="all").rows:
            prompt, chosen, _ = encode_pair(model, row, 10**6, 10**6)
            chat = [*row.prompt, {"role": "assistant", "content": row.chosen}]
            whole = model.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
            assert whole[: len(prompt) + len(chosen)] == prompt + chosen
            checked += 1
    assert checked == 5701
