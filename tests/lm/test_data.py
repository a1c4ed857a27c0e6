"""Preference data: every layout, cleaning, splits, batches, encoding."""

import copy
import dataclasses
import functools
import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairgrpo_jax.lm import data
from pairgrpo_jax.lm.data import (
    Columns,
    Half,
    Preference,
    PromptRow,
    asked_by,
    batch_indices,
    load_preferences,
    load_prompts,
    split_by_first_turn,
    unseen,
)
from pairgrpo_jax.lm.files.tokenizer import check_vocab
from pairgrpo_jax.lm.rewards.reward_model import about_head, fitted_on

USER = {"role": "user", "content": "Hi there"}
WANT = Preference((USER,), "Good day", "Go away")


def said(text, role="assistant"):
    return {"role": role, "content": text}


LAYOUTS = {
    "plain": {"prompt": "Hi there", "chosen": "Good day", "rejected": "Go away"},
    "plain, implicit prompt": {"chosen": "Hi there Good day", "rejected": "Hi there Go away"},
    "conversational": {"prompt": [USER], "chosen": [said("Good day")], "rejected": [said("Go away")]},
    "conversational, implicit prompt": {"chosen": [USER, said("Good day")], "rejected": [USER, said("Go away")]},
    "ultrafeedback_binarized": {
        "prompt": "Hi there",
        "chosen": [USER, said("Good day")],
        "rejected": [USER, said("Go away")],
        "score_chosen": 8.0,
        "score_rejected": 2.5,
    },
    "transcripts": {
        "chosen": "\n\nHuman: Hi there\n\nAssistant: Good day",
        "rejected": "\n\nHuman: Hi there\n\nAssistant: Go away",
    },
    "transcript prompt": {
        "prompt": "\n\nHuman: Hi there\n\nAssistant:",
        "chosen": " Good day",
        "rejected": " Go away",
    },
    "texts and scores": {
        "text": ["\n\nHuman: Hi there\n\nAssistant: Go away", "\n\nHuman: Hi there\n\nAssistant: Good day"],
        "score": [0.0, 1.0],
    },
    "scores in metadata": {
        "prompt": "Hi there",
        "chosen": "Good day",
        "rejected": "Go away",
        "metadata": {"score_chosen": 9, "score_rejected": 3},
    },
}


SYSTEM = said("Be kind", "system")
WHOLE = {
    # Transcripts: the prompt asks for the reply, and the sides hold it too.
    "transcript in both": (
        {"prompt": "\n\nHuman: Hi there\n\nAssistant:", "chosen": "\n\nHuman: Hi there\n\nAssistant: Good day",
         "rejected": "\n\nHuman: Hi there\n\nAssistant: Go away"}, (USER,)),
    "no blank lines before it": (
        {"prompt": "Human: Hi there\n\nAssistant:", "chosen": "Human: Hi there\n\nAssistant: Good day",
         "rejected": "Human: Hi there\n\nAssistant: Go away"}, (USER,)),
    "more blank lines": (
        {"prompt": "\n\n\n Human: Hi there\n\nAssistant: ", "chosen": " Good day", "rejected": " Go away"}, (USER,)),
    "words before the first turn": (
        {"prompt": "Be kind\n\nHuman: Hi there\n\nAssistant:", "chosen": " Good day", "rejected": " Go away"},
        (SYSTEM, USER)),
    "plain prompt, transcripts": (
        {"prompt": "Hi there"} | LAYOUTS["transcripts"], (USER,)),
    # A side that begins the chat is the whole chat.
    "system in the sides": (
        {"prompt": "Hi there", "chosen": [SYSTEM, USER, said("Good day")], "rejected": [SYSTEM, USER, said("Go away")]},
        (SYSTEM, USER)),
    "system and reply alone": (
        {"prompt": "Hi there", "chosen": [SYSTEM, said("Good day")], "rejected": [SYSTEM, said("Go away")]},
        (SYSTEM, USER)),
    "system in the prompt": (
        {"prompt": [SYSTEM, USER], "chosen": [USER, said("Good day")], "rejected": [USER, said("Go away")]},
        (SYSTEM, USER)),
    "system in both": (
        {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, said("Good day")], "rejected": [said("Go away")]},
        (SYSTEM, USER)),
    "prompt is the last turn": (
        {"prompt": "Hi there", "chosen": [said("Hm", "user"), said("Yes?"), USER, said("Good day")],
         "rejected": [said("Hm", "user"), said("Yes?"), USER, said("Go away")]},
        (said("Hm", "user"), said("Yes?"), USER)),
    "sides go on": (
        {"prompt": [said("Hm", "user"), said("Yes?")], "chosen": [USER, said("Good day")],
         "rejected": [USER, said("Go away")]}, (said("Hm", "user"), said("Yes?"), USER)),
    "replies begin with the prompt": (
        {"prompt": "Hi there", "chosen": "Hi there Good day", "rejected": "Hi there\nGo away"}, (USER,)),
    # Public sets.
    "ShareGPT": (
        {"conversations": [{"from": "system", "value": "Be kind"}, {"from": "human", "value": "Hi there"}],
         "chosen": {"from": "gpt", "value": "Good day"}, "rejected": {"from": "gpt", "value": "Go away"}},
        (SYSTEM, USER)),
    "messages beside replies": (
        {"messages": [USER], "chosen": "Good day", "rejected": "Go away"}, (USER,)),
    "Orca": (
        {"system": "Be kind", "question": "Hi there", "chosen": "Good day", "rejected": "Go away"}, (SYSTEM, USER)),
    "Orca, no system": (
        {"system": "", "question": "Hi there", "chosen": "Good day", "rejected": "Go away"}, (USER,)),
    "Argilla": (
        {"system": "Be kind", "input": "Hi there", "chosen": "Good day", "rejected": "Go away", "rating": [7.0, 9.0]},
        (SYSTEM, USER)),
    "HelpSteer2": (
        {"prompt": "Hi there", "response_1": "Go away", "response_2": "Good day", "preference_strength": 2}, (USER,)),
    "HelpSteer3": (
        {"context": [USER], "response1": "Good day", "response2": "Go away", "overall_preference": -1}, (USER,)),
    "PKU-SafeRLHF": (
        {"prompt": "Hi there", "response_0": "Go away", "response_1": "Good day", "better_response_id": 1}, (USER,)),
    "SHP": (
        {"history": "Hi there", "human_ref_A": "Good day", "human_ref_B": "Go away", "labels": 1}, (USER,)),
    "Chatbot Arena": (
        {"conversation_a": [USER, said("Go away")], "conversation_b": [USER, said("Good day")], "winner": "model_b"},
        (USER,)),
    # Content of other kinds.
    "developer and parts": (
        {"prompt": [said([{"type": "text", "text": "Be "}, {"type": "text", "text": "kind"}], "developer"), USER],
         "chosen": [said(["Good ", {"text": "day"}])], "rejected": [said("Go away")]}, (SYSTEM, USER)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_no_turn_is_doubled_or_lost(tmp_path, name):
    row, prompt = WHOLE[name]
    source = write(tmp_path / "x.jsonl", [row])
    loaded = load_preferences(source)
    assert [x[:3] for x in loaded.rows] == [(prompt, "Good day", "Go away")] and not loaded.dropped
    assert data.has_preferences(source) and [x.prompt for x in load_prompts(source).rows] == [prompt]


def test_replies_that_greet_back_keep_their_first_words(tmp_path, caplog):
    """Only where all replies of a set begin with their prompts are these taken away; told once."""
    greeting = {"prompt": "Hello", "chosen": "Hello you", "rejected": "Hello again"}
    other = {"prompt": "Hi", "chosen": "Hello", "rejected": "Hi! Yes?"}
    rows = load_preferences(write(tmp_path / "x.jsonl", [greeting, other])).rows
    assert rows[0][1:3] == ("Hello you", "Hello again") and not caplog.text
    rows = load_preferences(write(tmp_path / "y.jsonl", [greeting, greeting])).rows
    assert rows[0][1:3] == ("you", "again") and caplog.text.count("every reply begins with its prompt") == 1


def test_the_system_column_is_used_and_yields_to_a_system_turn(tmp_path):
    rows = [{"system_prompt": "Be kind", "prompt": "Hi there"}, {"system": "Other", "prompt": [SYSTEM, USER], "n": 1}]
    prompts = [x.prompt for x in load_prompts(write(tmp_path / "x.jsonl", rows), system="Third").rows]
    assert prompts == [(SYSTEM, USER), (SYSTEM, USER)]
    rows = [{"system": None, "prompt": "Hi there"}]
    assert load_prompts(write(tmp_path / "y.jsonl", rows), system="Be kind").rows[0].prompt == (SYSTEM, USER)


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message", "system_instruction"])
def test_a_system_column_by_any_name_is_used_or_refused(tmp_path, name):
    source = write(tmp_path / "x.jsonl", [{name: "Be kind", **LAYOUTS["plain"]}])
    assert load_preferences(source).rows[0].prompt == (SYSTEM, USER) == load_prompts(source).rows[0].prompt
    for load in (load_preferences, load_prompts):
        with pytest.raises(ValueError, match=rf"x\.jsonl:1: column '{name}' must hold a text.*got \["):
            load(write(tmp_path / "x.jsonl", [{name: [SYSTEM], **LAYOUTS["plain"]}]))


@pytest.mark.parametrize("name", ["images", "image", "video", "audio"])
def test_rows_with_something_else_than_text_in_a_column_are_dropped(tmp_path, name):
    rows = [LAYOUTS["plain"] | {name: value} for value in (["x.png"], [], None)]
    for load in (load_preferences, load_prompts):
        assert load(write(tmp_path / "x.jsonl", rows)).dropped[f"with something in column {name!r}"] == 1


@pytest.mark.parametrize("name", ["X.JSONL", "x.Json", "X.JSON.GZ", "x.PARQUET"])
def test_a_suffix_in_capitals_is_one(tmp_path, name):
    path, small = tmp_path / name, tmp_path / name.lower()
    if "parquet" in small.name:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([LAYOUTS["plain"]]), path)
    else:
        write(small, [LAYOUTS["plain"]])
        small.rename(path)
    assert load_preferences(str(path)).rows[0][:3] == WANT[:3]
    assert load_preferences(str(tmp_path), split="all").rows[0][:3] == WANT[:3]


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
def test_transcripts_of_windows_are_transcripts(tmp_path, newline):
    human, reply = "\n\nHuman: Hi there\n\nAssistant:", ("Good day", "Go away")
    whole = [{"chosen": f"{human} {reply[0]}", "rejected": f"{human} {reply[1]}"}]
    for row in (*whole, {"prompt": human, **whole[0]}, {"prompt": human, "chosen": reply[0], "rejected": reply[1]}):
        row = {k: v.replace("\n", newline) for k, v in row.items()}
        assert load_preferences(write(tmp_path / "x.jsonl", [row])).rows[0][:3] == WANT[:3]


def test_lines_of_json_may_hold_separators_of_unicode(tmp_path):
    row = json.dumps(LAYOUTS["plain"] | {"note": "a\u2028b\x85c"}, ensure_ascii=False)
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).write_text(f"{row}\n{row}\n", encoding="utf-8")
        assert len(load_preferences(str(tmp_path / name)).rows) == 2


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "shift-jis"])
def test_another_encoding_is_named_as_none_of_ours(tmp_path, encoding):
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"prompt": "\u00e9\u3042"}'.encode(encoding, errors="ignore"))
    with pytest.raises(ValueError, match=r"x\.jsonl: not UTF-8: .*iconv"):
        load_prompts(str(path))


def test_scores_of_public_sets(tmp_path):
    pair = LAYOUTS["plain"]
    names = [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
    ]
    names += [("chosen_avg_rating", "rejected_avg_rating"), ("reward_chosen", "reward_rejected")]
    rows = [pair | {a: 1.5, b: 1.5} for a, b in names] + [pair | {"rating": [4, 4]}]
    rows += [pair | {a: 1, b: 2} for a, b in names]
    rows += [{"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 0}]
    arena = {"conversation_a": [USER, said("a")], "conversation_b": [USER, said("b")]}
    rows += [arena | {"winner": x} for x in ("tie (bothbad)", "both_bad", "tie")]
    unknown = [pair | {"chosen_score": 1.0, "rejected_score": x} for x in (None, float("nan"))]
    loaded = load_preferences(write(tmp_path / "x.jsonl", [*rows, *unknown]))
    assert loaded.dropped == {"tie": len(names) + 5, "scores contradict the labels": len(names)}
    assert [x[:3] for x in loaded.rows] == [WANT[:3]] * 2
    prompts = load_prompts(write(tmp_path / "x.jsonl", [row | {"id": i} for i, row in enumerate([*rows, *unknown])]))
    assert len(prompts.rows) == len(rows) + 2 and not prompts.dropped
    with pytest.raises(ValueError, match=r"x\.jsonl:1: column 'winner' = 'nobody' does not say which"):
        load_preferences(write(tmp_path / "x.jsonl", [rows[-1] | {"winner": "nobody"}]))


def test_columns_that_are_named_like_those_of_preferences_and_hold_something_else(tmp_path):
    path = write(tmp_path / "x.jsonl", [{"prompt": "p", "text": "hello", "score": 0.5}] * 2)
    assert not data.has_preferences(path) and load_prompts(path).rows[0].prompt == (said("p", "user"),)
    path = write(tmp_path / "y.jsonl", [{"prompt": "p", "chosen": "a"}])
    assert load_prompts(path).rows[0].prompt == (said("p", "user"),)
    for rating in ("10", "ab", [1, 2, 3]):
        rows = [LAYOUTS["plain"] | {"rating": rating}]
        assert load_preferences(write(tmp_path / "z.jsonl", rows)).rows[0][:3] == WANT[:3]


UNNAMED = {"user_query": "What is 2+2?", "model_prompt": "Hi there", "post": "你好，世界", "turns": [USER]}
UNNAMED |= {"trajectory": [{"from": "human", "value": "Hi"}]}


@pytest.mark.parametrize("start", ["The", "I", "Step 1:", "The answer is", ""])
@pytest.mark.parametrize("name", UNNAMED)
def test_words_that_replies_happen_to_begin_with_are_no_prompt(tmp_path, start, name):
    row = {"source": "the web", name: UNNAMED[name], "chosen": f"{start} yes", "rejected": f"{start} no"}
    source = write(tmp_path / "x.jsonl", [row])
    for load in (load_preferences, load_prompts):
        with pytest.raises(ValueError, match=rf"x\.jsonl:1: no column 'prompt', but '{name}'; .* {name}$"):
            load(source)
    assert load_preferences(source, prompt_column=name).rows[0].chosen == f"{start} yes".strip()


BESIDE = {"id": "a-1", "source": "the web", "prompt_category": "small talk", "Model": "gpt 4", "dataset": "HH RLHF"}
BESIDE |= {"rejected_why": "is rude", "system": "Be kind", "tags": ["a b"], "date": "2026-01-02 10:00", "best": "day"}
MARKED = ["User: Hi\nBot:", "<|im_start|>user\nHi<|im_end|>", "<s>[INST] Hi [/INST]", "Do.\n\n### Instruction:\nHi"]


@pytest.mark.parametrize(("start", "beside"), [("Hi there", BESIDE), *((x, {"why": "it is kind"}) for x in MARKED)])
def test_columns_that_hold_no_prompt_leave_it_what_both_replies_begin_with(tmp_path, start, beside):
    row = {"chosen": f"{start} Good day", "rejected": f"{start} Go away"} | beside
    found = load_preferences(write(tmp_path / "x.jsonl", [row])).rows[0]
    assert found.prompt[-1] == said(start, "user") and found[1:3] == WANT[1:3]


def test_text_that_is_not_unicode_drops_its_row(tmp_path):
    """JSON can write one half of a character of two, and no file or tokenizer takes it."""
    pair, half = LAYOUTS["plain"], "a \ud83d"
    rows = [pair, *(pair | {name: half} for name in ("prompt", "chosen", "rejected", "note"))]
    loaded = load_preferences(write(tmp_path / "x.jsonl", [*rows, pair | {"prompt": "\ud83d\ude00"}]))
    assert loaded.dropped == {"with text that is not Unicode": 4} and loaded.rows[1].prompt == (said("😀", "user"),)
    rows = [{"prompt": [said(half, "user")]}, {"prompt": "a", "answers": [half]}, {"prompt": "b"}]
    loaded = load_prompts(write(tmp_path / "y.jsonl", rows))
    assert loaded.dropped == {"with text that is not Unicode": 2} and len(split_by_first_turn(loaded.rows)[0]) < 2


REPLIES = {"prompt": "p", "response_1": "a", "response_2": "b"}
SILENT = {
    "preference_strength": REPLIES,
    "overall_preference": {"context": [USER], "response1": "a", "response2": "b"},
    "better_response_id": {"prompt": "p", "response_0": "a", "response_1": "b"},
    "labels": {"history": "p", "human_ref_A": "b", "human_ref_B": "a"},
    "score": {"text": ["\n\nHuman: p\n\nAssistant: a", "\n\nHuman: p\n\nAssistant: b"]},
}


@pytest.mark.parametrize("column", SILENT)
def test_a_label_that_says_nothing_drops_its_row(tmp_path, column):
    good = [1, 1.0, True] if column != "score" else [[0, 1]]
    bad = [float("nan"), None] if column != "score" else [[float("nan"), 2], [1, None], [0, float("nan")]]
    bad += [2, -1, 0.5, "1", [1], {}] if column in ("better_response_id", "labels") else []
    rows = [SILENT[column] | {column: value} for value in (*good, *bad)]
    loaded = load_preferences(write(tmp_path / "x.jsonl", rows))
    assert loaded.dropped == {f"with nothing said in column {column!r}": len(bad)}
    assert [x[1:3] for x in loaded.rows] == [("b", "a")] * len(good)


def test_a_null_system_message_is_none(tmp_path):
    orca = {"question": "Hi there", "chosen": "Good day", "rejected": "Go away"}
    source = write(tmp_path / "x.jsonl", [orca | {"system": x} for x in ("Be kind", None, "")])
    for load in (load_preferences, load_prompts):
        assert [x.prompt for x in load(source).rows][:2] == [(SYSTEM, USER), (USER,)]
    assert len(load_preferences(source).rows) == 3


NO_TEXT = {
    "with a turn of role 'tool'": [USER, said("x", "tool")],
    "with a turn of role 'function'": [USER, said("x", "function")],
    "with null content": [said(None, "user")],
    "with a tool call": [USER, said(None) | {"tool_calls": [{"name": "f"}]}, said("and?", "user")],
    "with a part of type 'image'": [said([{"type": "image"}, {"type": "text", "text": "what?"}], "user")],
    "with a part of type 'image_url'": [said([{"type": "image_url", "image_url": {"url": "x"}}], "user")],
}


def test_rows_that_no_text_can_stand_for_are_dropped_by_reason(tmp_path):
    good = {"messages": [USER | {"tool_calls": None}]}
    rows = [{"messages": m} for m in (*NO_TEXT.values(), [USER, said("x", "tool")])]
    loaded = load_prompts(write(tmp_path / "x.jsonl", [*rows, good]))
    assert loaded.dropped == dict.fromkeys(NO_TEXT, 1) | {"with a turn of role 'tool'": 2}
    assert [x.prompt for x in loaded.rows] == [(USER,)]
    pairs = [{"prompt": m, "chosen": [said("a")], "rejected": [said("b")]} for m in NO_TEXT.values()]
    pairs += [{"prompt": "q", "chosen": [said(None)], "rejected": [said("b")]}]
    loaded = load_preferences(write(tmp_path / "y.jsonl", [*pairs, LAYOUTS["plain"]]))
    assert loaded.dropped == dict.fromkeys(NO_TEXT, 1) | {"with null content": 2} and len(loaded.rows) == 1
    assert "1 with a tool call" in data.describe(loaded)


def write(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)) if ".jsonl" in path.name else json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_the_same_preference(tmp_path, name):
    loaded = load_preferences(write(tmp_path / "x.jsonl", [LAYOUTS[name]]))
    assert [row[:3] for row in loaded.rows] == [WANT[:3]] and not loaded.dropped


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.json.gz", "x.jsonl.gz", "x.parquet"])
def test_file_formats(tmp_path, name):
    rows = [LAYOUTS["plain"], {"prompt": "two\nlines", "chosen": "é", "rejected": "b"}]
    if name.endswith("parquet"):
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(tmp_path / name)
    else:
        write(tmp_path / name, rows)
    want = [WANT, Preference((said("two\nlines", "user"),), "é", "b")]
    assert load_preferences(str(tmp_path / name)).rows == want
    assert load_preferences(str(tmp_path)).rows == want


def test_folder_takes_the_files_of_a_split(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}_clean.jsonl", [{"prompt": name, "chosen": "a", "rejected": "b"}])
    write(tmp_path / "latest.jsonl", [{"prompt": "new", "chosen": "a", "rejected": "b"}])  # of no split
    first = {s: [data.first_turn(r) for r in load_preferences(str(tmp_path), split=s).rows] for s in ("test", "all")}
    assert first == {"test": ["test"], "all": ["new", "test", "train"]}
    with pytest.raises(ValueError, match=r"no file for split 'validation'.*train_clean\.jsonl"):
        load_preferences(str(tmp_path), split="validation")


def test_one_file_has_no_splits_but_what_its_name_says(tmp_path):
    write(tmp_path / "test.jsonl", [{"prompt": "a", "chosen": "a", "rejected": "b"}])
    for source in (tmp_path, tmp_path / "test.jsonl"):
        loaded = [load_preferences(str(source), split=split).rows for split in ("train", "test", "all")]
        assert loaded[0] == loaded[1] == loaded[2]
    for source in (tmp_path / "test.jsonl", "tiny"):
        with pytest.raises(ValueError, match=r"split='validation': \S+ is one file without splits"):
            load_preferences(str(source), split="validation")
    with pytest.raises(ValueError, match="no file for split 'validation'"):
        load_preferences(str(tmp_path), split="validation")


def test_transcript_turns():
    text = "\n\nHuman: one\n\nAssistant: two\n\nstill two\n\nHuman: three\n\nAssistant:"
    roles = ["user", "assistant", "user", "assistant"]
    texts = ["one", "two\n\nstill two", "three", ""]
    assert data.parse_transcript(text) == tuple(said(t, r) for t, r in zip(texts, roles))


DIRT = {
    "empty reply": {"prompt": "p", "chosen": " ", "rejected": "b"},
    "identical replies": {"prompt": "p", "chosen": "a ", "rejected": "a"},
    "tie": {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1},
    "scores contradict the labels": LAYOUTS["plain"] | {"score_chosen": 1, "score_rejected": 2},
    "empty prompt": {"prompt": " ", "chosen": "a", "rejected": "b"},
    "prompts differ": {"chosen": [USER, said("a")], "rejected": [said("Hello", "user"), said("b")]},
    "no reply at the end": {"chosen": [USER, said("a"), USER], "rejected": [USER, said("b")]},
    "prompt and chat differ": {"prompt": "p", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
    "two system messages": {"prompt": [said("S", "system"), USER], "chosen": [said("T", "system"), USER, said("a")],
                            "rejected": [said("b")]},
    "prompt without a last user turn": {"prompt": [USER, said("x")], "chosen": [said("a")], "rejected": [said("b")]},
}  # fmt: skip


def test_dirt_is_dropped_and_counted(tmp_path):
    more = [{"prompt": "p", "chosen": "a", "rejected": None}, {"prompt": None, "chosen": "The a", "rejected": "The b"}]
    source = write(tmp_path / "x.jsonl", [*DIRT.values(), *more, LAYOUTS["plain"]])
    loaded = load_preferences(source)
    assert loaded.rows == [WANT]
    assert loaded.dropped == dict.fromkeys(DIRT, 1) | {"empty reply": 2, "empty prompt": 2}
    assert "1 preferences; dropped 12" in data.describe(loaded) and "1 tie" in data.describe(loaded)
    with pytest.raises(ValueError, match=r"no usable preference \(1 tie"):
        load_preferences(write(tmp_path / "y.jsonl", [DIRT["tie"]]))


BAD_FILES = {
    "columns": ('{"prompt": "a", "answer": "b"}', r"x\.jsonl:1: expected columns 'chosen'.*'answer'"),
    "json": ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{oops', r"x\.jsonl:2: not JSON"),
    "not an object": ("[1, 2]", r"x\.jsonl:1: expected an object"),
    "mixed": ('{"chosen": "a", "rejected": [1]}', "both be texts or both be lists"),
    "role": ('{"chosen": [{"role": "bot", "content": "x"}], "rejected": [{"role": "bot", "content": "y"}]}', "bot"),
    "message": ('{"chosen": [{"text": "x"}], "rejected": [{"text": "y"}]}', "messages must be a list"),
    "content": ('{"prompt": [{"role": "user", "content": 5}], "chosen": "a", "rejected": "b"}', "content must be text"),
    "empty": ("", "no row at all"),
    "another name": (
        '{"question": "a", "chosen": "b", "rejected": "c"}',
        "no column 'prompt', but 'question'; if it holds the prompt: --prompt-column question",
    ),
    "one score": ('{"text": "ab", "score": 0.5}', "must hold two entries each"),
    "words as scores": (
        '{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "good", "score_rejected": "bad"}',
        r"x\.jsonl:1: scores must be two numbers, got \['good', 'bad'\]",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path, name):
    text, message = BAD_FILES[name]
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_preferences(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.jsonl", '{"prompt": "a"\n{"prompt": "b"}\n', "x.jsonl:1: not JSON: Expecting ',' delimiter, column 15"),
        ("x.jsonl", '{"prompt": "a"}\n\n{"prompt": }', "x.jsonl:3: not JSON: Expecting value, column 12"),
        ("x.json", '{"prompt": "a"}\n{"prompt": "b"\n', "x.json:2: not JSON: Expecting ',' delimiter, column 15"),
        ("x.json", '[{"prompt": "a"},\n {"prompt" "b"}]', "x.json:2: not JSON: Expecting ':' delimiter, column 12"),
    ],
)
def test_where_a_file_is_not_json_is_told_in_its_own_lines(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        load_prompts(str(tmp_path / name))
    assert str(error.value) == f"{tmp_path}/{said}"


def test_bad_sources(tmp_path):
    for name in ("nowhere.jsonl", "nowhere", "a/b/c"):
        with pytest.raises(ValueError, match="no such file or folder"):
            load_preferences(name)
    (tmp_path / "x.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "x.parquet").write_bytes(b"plain")
    (tmp_path / "x.txt").write_text("plain")
    for name, message in (("x.jsonl.gz", "gzip"), ("x.parquet", "parquet"), ("x.txt", "ends in")):
        with pytest.raises(ValueError, match=message):
            load_preferences(str(tmp_path / name))


class Hub:
    """Stands in for `datasets`: two sets, one with a folder."""

    def __init__(self, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["default"])
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, name, **where):
        if name == "no/where":
            raise ConnectionError("the hub is down")
        self.where = where
        import datasets

        return datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list([LAYOUTS["ultrafeedback_binarized"]])})


def test_hub(monkeypatch):
    hub = Hub(monkeypatch)
    assert load_preferences("owner/name:harmless-base").rows == [WANT]
    assert hub.where == {"data_dir": "harmless-base"}
    with pytest.raises(ValueError, match="no split 'test'; it has train_prefs"):
        load_preferences("owner/name", split="test")
    with pytest.raises(ValueError, match="the hub does not give it: the hub is down"):
        load_preferences("no/where")


def test_prompts(tmp_path):
    def prompts(loaded):
        return [row.prompt for row in loaded.rows]

    rows = [{"prompt": "Hi there"}, {"messages": [USER, said("x")]}, {"prompt": ""}, {"prompt": [said("q", "user")]}]
    assert prompts(load_prompts(write(tmp_path / "x.jsonl", rows))) == [(USER,), (said("q", "user"),)]
    assert prompts(load_prompts(write(tmp_path / "y.jsonl", [LAYOUTS["transcripts"]]))) == [(USER,)]
    loaded = load_prompts(write(tmp_path / "w.jsonl", [*rows, {"prompt": None}, {"prompt": "b", "text": "c"}]))
    assert prompts(loaded)[2:] == [(said("b", "user"),)] and loaded.dropped == {
        "empty prompt": 2,
        "duplicate prompt": 1,
    }
    assert data.describe(loaded) == "3 prompts; dropped 3: 1 duplicate prompt, 2 empty prompt"
    with pytest.raises(ValueError, match=r"column 'prompt', 'messages' or 'conversations'.*--prompt-column question"):
        load_prompts(write(tmp_path / "z.jsonl", [{"question": "q"}]))


def test_other_columns_are_kept(tmp_path):
    rows = [{"question": "1+1", "answer": 2, "level": "easy"}, {"question": "1+2", "answer": 3, "level": "hard"}]
    source = write(tmp_path / "x.jsonl", [*rows, rows[0], {"question": "1+2", "answer": 4, "level": "hard"}])
    loaded = load_prompts(source, prompt_column="question")
    assert [row.columns["answer"] for row in loaded.rows] == [2, 3, 4]  # the row that is there twice comes once
    assert loaded.rows[0] == PromptRow((said("1+1", "user"),), {"answer": 2, "level": "easy"})
    named = load_prompts(source, prompt_column="question", columns=Columns(("level",), ("nowhere",)))
    assert [row.columns for row in named.rows] == [{"level": "easy"}, {"level": "hard"}]
    pair = LAYOUTS["ultrafeedback_binarized"] | {"topic": "greeting"}
    source = write(tmp_path / "y.jsonl", [pair])
    assert load_preferences(source).rows[0].columns == load_prompts(source).rows[0].columns == {"topic": "greeting"}
    asked = load_prompts(source, columns=Columns(("chosen",))).rows[0].columns
    assert asked == {"chosen": pair["chosen"]}


def test_a_column_can_hold_the_prompt_and_a_system_message_go_before_it(tmp_path):
    source = write(tmp_path / "x.jsonl", [{"question": "Hi there", "chosen": "Good day", "rejected": "Go away"}])
    system = said("Be brief.", "system")
    row = load_preferences(source, prompt_column="question", system="Be brief.").rows[0]
    assert row == Preference((system, USER), "Good day", "Go away")
    own = write(tmp_path / "y.jsonl", [{"prompt": [said("Mine.", "system"), USER]}, {"prompt": [USER]}])
    prompts = [row.prompt for row in load_prompts(own, system="Be brief.").rows]
    assert prompts == [(said("Mine.", "system"), USER), (system, USER)]


BAD_COLUMNS = {
    "missing": ([{"answer": 1}, {}], r"x\.jsonl:2: no column 'answer', which the reward asks for"),
    "misspelt": ([{"answr": 1}], r"x\.jsonl:1: no column 'answer'.*did you mean 'answr'\?"),
    "changes type": (
        [{"answer": 1}, {"answer": 2.5}, {"answer": None}, {"answer": "3"}],
        r"x\.jsonl:4.*a str.*a number",
    ),
    "a number, then a flag": ([{"answer": 1}, {"answer": True}], r"x\.jsonl:2: column 'answer' holds a bool"),
    "a list, then a text": ([{"answer": ["1"]}, {"answer": "1"}], r"x\.jsonl:2: column 'answer' holds a str.*a list"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_bad_columns_are_named_with_their_line(tmp_path, name):
    rows, message = BAD_COLUMNS[name]
    source = write(tmp_path / "x.jsonl", [{"prompt": f"q{i}"} | row for i, row in enumerate(rows)])
    with pytest.raises(ValueError, match=message):
        load_prompts(source, columns=Columns(("answer",)))
    with pytest.raises(ValueError, match=r"no column 'promt' .*did you mean 'prompt'"):
        load_prompts(source, prompt_column="promt")


def test_what_a_function_asks_for():
    def all_kinds(prompts, completions, answer, level="easy", *more, unit, note=None, **columns):
        """Names columns in every way."""

    assert asked_by(all_kinds, 2) == Columns(("answer", "unit"), ("level", "note"), True)
    assert asked_by(lambda prompts, completions: 0, 2) == asked_by(max, 2) == Columns()
    assert asked_by(functools.partial(all_kinds, unit="m"), 2) == Columns(("answer",), ("level", "unit", "note"), True)
    assert Columns(("a",), ("b",)) | Columns(("b",), ("c",), True) == Columns(("a", "b"), ("c",), True)
    rows = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}]
    assert Columns(("a",), ("b", "c")).shared(rows) == ("a", "c") == Columns(others=True).shared(rows)
    with pytest.raises(ValueError, match=r"asks for a column 'b'; there are a, c"):
        Columns(("b",)).shared(rows)
    with pytest.raises(ValueError, match=r"^judge: it asks for a column 'b'"):
        Columns(("b",)).shared(rows, "judge")


def test_a_spread_sample_is_the_same_every_time_and_from_all_over():
    rows = list(range(100))
    assert data.spread(rows, 200) == rows
    some = data.spread(rows, 10)
    assert some == data.spread(rows, 10) == sorted(set(some)) and len(some) == 10 and some[-1] >= 50 > some[0]


ALTERNATE = "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
ALTERNATE += "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m['content'] }}>{% endfor %}"


def test_templates_that_refuse(smollm2, caplog):
    """As Gemma's and Mistral's do: HH-RLHF holds two turns of one speaker in a row."""
    tokenizer = copy.deepcopy(smollm2.tokenizer)
    tokenizer.chat_template = ALTERNATE
    model = dataclasses.replace(smollm2, tokenizer=tokenizer)
    twice = (USER, said("one"), said("two"), said("and?", "user"))
    ids = data.encode_prompt(model, twice, 64)
    assert tokenizer.decode(ids) == "<Hi there><one\n\ntwo><and?>"
    assert data.encode_prompt(model, (said("be kind", "system"), USER), 64) is None
    assert "a prompt is left out: the chat template refuses these messages: roles must alternate" in caplog.text


def test_tiny_set():
    both, helpful, harmless = (load_preferences(f"tiny{x}") for x in ("", "-helpful", "-harmless"))
    assert both.rows == helpful.rows + harmless.rows and len(both.rows) == 150 and not both.dropped
    longer = np.mean([len(r.chosen) > len(r.rejected) for r in both.rows])
    assert 0.4 < longer < 0.8  # length does not give the label away


def test_real_files(data_folder):
    """The counts of the specification; 2 of the 136 ties are identical pairs too, and counted as such."""
    files = ["hh-rlhf-harmless-base", "hh-rlhf-helpful-base", "ultrafeedback-binarized-1200"]
    loaded = [load_preferences(str(data_folder / name), split="all") for name in files]
    assert [x.dropped for x in loaded] == [
        {"prompts differ": 5, "empty reply": 4},
        {"prompts differ": 9, "empty reply": 4},
        {"tie": 134, "identical replies": 5, "empty reply": 2},
    ]
    assert [len(x.rows) for x in loaded] == [2303, 2339, 1059]
    rows = loaded[0].rows
    kept, held_out = split_by_first_turn(rows, fold=2)
    assert len(kept) + len(held_out) == len(rows)
    assert not {data.first_turn(r) for r in kept} & {data.first_turn(r) for r in held_out}


def test_split_by_first_turn():
    rows = [Preference((said(f"q{i // 2}", "user"), said("a"), said(f"{i}", "user")), "x", "y") for i in range(400)]
    folds = [split_by_first_turn(rows, fold=f, seed=3)[1] for f in range(5)]
    assert sum(map(len, folds)) == len(rows) and all(50 < len(f) < 110 for f in folds)
    assert all(sum(row in f for f in folds) == 1 for row in rows)
    for held_out in folds:
        assert all(sum(data.first_turn(r) == data.first_turn(x) for x in held_out) == 2 for r in held_out)
    assert split_by_first_turn(rows[::-1], fold=0, seed=3)[1] == folds[0][::-1]  # order does not matter
    assert split_by_first_turn(rows, fold=0, seed=4)[1] != folds[0]
    with pytest.raises(ValueError, match="fold=5"):
        split_by_first_turn(rows, fold=5)


def test_batches_cover_every_epoch_and_depend_on_the_position_alone():
    batches = [batch_indices(10, 4, i, seed=1) for i in range(10)]
    flat = np.concatenate(batches)
    epochs = flat.reshape(4, 10)
    assert all(sorted(e) == list(range(10)) for e in epochs.tolist())
    assert len({tuple(e) for e in epochs.tolist()}) == 4
    np.testing.assert_array_equal(batch_indices(10, 4, 7, seed=1), batches[7])
    assert any(batch_indices(10, 4, i, seed=2).tolist() != batches[i].tolist() for i in range(3))
    assert len(batch_indices(3, 8, 0, seed=0)) == 8
    with pytest.raises(ValueError, match="position=-1"):
        batch_indices(3, 1, -1, 0)


def test_encoding_with_the_chat_template(smollm2):
    turns = (said("You are terse.", "system"), USER, said("Hello."), said("Name a colour, please.", "user"))
    ids = data.encode_prompt(smollm2, turns, 1000)
    assert ids is not None
    text = smollm2.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou are terse.") and text.endswith("<|im_start|>assistant\n")
    short = data.encode_prompt(smollm2, turns, len(ids) - 1)
    assert short is not None
    text = smollm2.tokenizer.decode(short)
    assert "You are terse." in text and "Name a colour" in text and "Hi there" not in text and "Hello." not in text
    twice = data.encode_prompt(smollm2, (said("Be kind.", "system"), *turns), len(ids))
    assert twice is not None
    text = smollm2.tokenizer.decode(twice)
    assert "Be kind." in text and "You are terse." in text and "Hi there" not in text
    assert data.encode_prompt(smollm2, turns, 8) is None
    reply = data.encode_reply(smollm2, "Red.", 10)
    assert smollm2.tokenizer.decode(reply) == "Red.<|im_end|>"
    assert data.encode_reply(smollm2, "Red.", 2) == reply[:2]


def test_encoding_without_tokenizer(tiny):
    for call in (lambda: data.encode_prompt(tiny, (USER,), 10), lambda: data.encode_reply(tiny, "x", 10)):
        with pytest.raises(ValueError, match="no tokenizer"):
            call()


def test_encoding_without_template_and_with_several_ends(smollm2):
    import dataclasses

    plain = dataclasses.replace(
        smollm2, tokenizer=type(smollm2.tokenizer)(tokenizer_object=smollm2.tokenizer._tokenizer)
    )
    assert plain.tokenizer.decode(data.encode_prompt(plain, (USER,), 99)) == "\n\nHuman: Hi there\n\nAssistant:"
    assert plain.tokenizer.decode(data.encode_reply(plain, "Red.", 99)) == " Red.<|im_end|>"
    kind, terse = said("Be kind.", "system"), said("Be terse.", "system")
    text = plain.tokenizer.decode(data.encode_prompt(plain, (kind, terse, USER, said("x"), kind, USER), 99))
    turn = "\n\nHuman: Hi there\n\nAssistant:"
    assert text == "Be kind.\n\nBe terse." + turn + " x\n\nBe kind." + turn
    config = dataclasses.replace(smollm2.config, eos_ids=(0, 2))
    assert data.end_of_turn(dataclasses.replace(smollm2, config=config)) == 2


def test_a_tokenizer_of_another_model_is_refused(smollm2):
    size, ends = smollm2.config.vocab_size, smollm2.config.eos_ids
    check_vocab(smollm2.tokenizer, size, ends, "config.json")
    with pytest.raises(ValueError, match=r"config.json: the tokenizer's ids go up to \d+, field 'vocab_size' = 100"):
        check_vocab(smollm2.tokenizer, 100, ends, "config.json")
    with pytest.raises(ValueError, match=r"'eos_token_id' = .128001.: the tokenizer has none"):
        check_vocab(smollm2.tokenizer, 200_000, (128_001,), "config.json")


@given(st.lists(st.text(max_size=5), min_size=1, max_size=40), st.integers(0, 1), st.integers(0, 3))
def test_what_a_judge_was_fitted_on_is_in_no_part_of_a_run(turns, number, seed):
    rows = [PromptRow(({"role": "user", "content": turn},)) for turn in turns]
    half, other = Half(number, seed), Half(1 - number, seed)
    fitted = {data.first_turn(row) for row in rows if half.holds(row)}
    assert all(half.holds(row) != other.holds(row) for row in rows)
    if len(fitted) == len(set(turns)):
        with pytest.raises(ValueError, match=r"all .* rows are of the half that the judge was fitted on"):
            unseen(rows, half)
        return
    parts = [{data.first_turn(row) for row in part} for part in split_by_first_turn(unseen(rows, half))]
    assert not parts[0] & parts[1] and not fitted & (parts[0] | parts[1])
    assert fitted | parts[0] | parts[1] == set(turns) and unseen(rows, None) == rows


def test_the_shipped_heads_say_which_half_they_were_fitted_on(data_folder):
    """That many pairs of the half there are in their data, and as many did each of them see."""
    rows = load_preferences(str(data_folder / "hh-rlhf-harmless-base"), split="all").rows
    for number, half in enumerate("ab"):
        found = fitted_on(f"harmless-{half}", "hh-rlhf-harmless-base")
        assert found is not None and found == Half(number, 0) and fitted_on(f"harmless-{half}", "tiny") is None
        assert sum(found.holds(row) for row in rows) == about_head(f"harmless-{half}")["pairs"]
    turns = {data.first_turn(row) for row in rows}
    assert not turns & {data.first_turn(row) for row in load_preferences("tiny").rows}


def test_prompts_that_come_again_are_counted(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Question {i % 3}?"}) for i in range(5)))
    assert data.describe(data.load_prompts(str(file))) == "3 prompts; dropped 2: 2 duplicate prompt"


def test_a_file_of_prompts_under_an_unknown_name_names_its_option(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"user_query": "Why is it so?", "want": "rain"}) + "\n")
    with pytest.raises(ValueError, match="if 'user_query' holds the prompt: --prompt-column user_query"):
        load_prompts(str(tmp_path / "p.jsonl"))
