"""A judge behind an address, over real HTTP: what it asks, what it makes of any answer, and what it never says."""

import json
import logging

import numpy as np
import pytest
from chat_server import KEY

from pairgrpo_jax.lm.rewards.asking import Answer, JudgeError, Memory
from pairgrpo_jax.lm.rewards.rubric import Rubric, read_rubric
from pairgrpo_jax.lm.rewards.sources import SourceError, judge

pytest.importorskip("openai", reason="needs the extra judge")
from pairgrpo_jax.lm.rewards.openai_judge import OpenAIJudge

PROMPT = ({"role": "user", "content": "Name a {colour}."},)
PROMPTS = [PROMPT, ({"role": "user", "content": "Why?"},)]
COMPLETIONS = [["Red.", "Red, or {blue}.", "A", "Bee bee"], ["Because.", "No.", "Why not, then?", "I"]]


def test_what_is_asked_and_answered(served):
    state = served()
    assert OpenAIJudge("m")(PROMPT, "Red, or {blue}.", "Red") == Answer(0, 100, 5)
    assert OpenAIJudge("m")(PROMPT, "a", "bb").verdict == 1 and OpenAIJudge("m")(PROMPT, "a", "b").verdict is None
    body = state.requests[0]["body"]
    assert body["model"] == "m" and body["temperature"] == 0 and "max_completion_tokens" not in body
    schema = body["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["properties"]["verdict"]["enum"] == ["A", "B", "tie"]
    assert "Name a {colour}." in state.questions[0] and "Red, or {blue}." in state.questions[0]
    OpenAIJudge("m", answers="text", temperature=None, max_tokens=7)(PROMPT, "a", "b")
    body = state.requests[-1]["body"]
    assert "response_format" not in body and "temperature" not in body and body["max_completion_tokens"] == 7


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        ('{"verdict": "A"}', 0),
        ('```json\n{"verdict": "B"}\n```', 1),
        ('Both are short. {"reason": 1} {"verdict": "tie"}', None),
        ('<think>Either {"verdict": "A"} or {"verdict": "B"}.</think>\n{"verdict": "B"}', 1),
        ('The format is {"verdict": "A"}. So: {"verdict": "b"}', 1),
        ('{"verdict": "Tie"}', None),
        ("A is short, B is right.</think>\nB", 1),
        ("B.", 1),
        ("Reply A is better.", 0),
        ("TIE", None),
    ],
)
def test_verdicts_in_many_words(served, content, verdict):
    served()
    assert OpenAIJudge("m")._verdict(content) == verdict


@pytest.mark.parametrize("content", ["", "A good reply is B", '{"verdict": "C"}', '{"verdict": ["A"]}', "[]", "A or B"])
def test_what_is_no_verdict(served, content):
    served()
    with pytest.raises(JudgeError, match="expected a verdict A, B or tie"):
        OpenAIJudge("m")._verdict(content)


def test_a_batch_in_both_orders(served):
    state = served()
    source = judge(OpenAIJudge("m"), compare="all", both_orders=True, concurrency=3, prices=(10.0, 100.0))
    found = source(PROMPTS, COMPLETIONS)
    assert state.most <= 3 and len(state.requests) == 24 == found.metrics["judge_questions"]
    assert found.metrics["judge_cost"] == pytest.approx(24 * (100 * 10 + 5 * 100) / 1e6)
    lengths = np.array([[len(text) for text in group] for group in COMPLETIONS])
    gain = np.take_along_axis(lengths, np.asarray(found.pairs.preferred), 1)
    gain = gain - np.take_along_axis(lengths, np.asarray(found.pairs.rejected), 1)
    weight = np.asarray(found.pairs.weight)
    assert (gain[weight > 0] > 0).all() and (gain[weight == 0] == 0).all() and not found.failed.any()


def test_answers_without_a_verdict_are_paid_for(served):
    served("garbage", 500, "good")
    source = judge(OpenAIJudge("m"), retries=3, backoff=0, concurrency=1, prices=(10.0, 100.0))
    metrics = source(PROMPTS[:1], [["Red", "Red."]]).metrics
    assert metrics["judge_questions"] == 2 and metrics["judge_cost"] == pytest.approx(2 * (100 * 10 + 5 * 100) / 1e6)
    assert (metrics["judge_prompt_tokens"], metrics["judge_completion_tokens"]) == (200, 10)


def test_a_judge_of_one_side_says_nothing(served):
    served(lambda body: "A")
    assert not judge(OpenAIJudge("m"), compare="all", both_orders=True)(PROMPTS, COMPLETIONS).pairs.weight.any()


@pytest.mark.parametrize("trouble", [429, (429, 0.2), 500, 503, "garbage", "not json", "empty", "hang up", "slow"])
def test_trouble_that_passes_is_asked_again(served, trouble):
    state = served(trouble, trouble, "good")
    source = judge(OpenAIJudge("m", timeout=0.5), retries=3, backoff=0.01, concurrency=1)
    found = source(PROMPTS[:1], [["Red", "Red."]])
    assert (
        len(state.requests) == 3 and found.metrics["judge_retries"] == 2 and np.asarray(found.pairs.preferred) == [[1]]
    )


@pytest.mark.parametrize(
    ("trouble", "said", "asked"),
    [
        (429, "Error code: 429", 3),
        (500, "Error code: 500", 3),
        ("garbage", "expected a verdict A, B or tie", 3),
        ("not json", "not a chat completion", 3),
        ("empty", "not a chat completion", 3),
        ("hang up", "127.0.0.1", 3),
        ("slow", "timed out|no answer", 3),
        (401, "is OPENAI_API_KEY the key of this server", 1),
        (404, "Error code: 404", 1),
    ],
)
def test_trouble_that_stays(served, trouble, said, asked):
    state = served(trouble)
    judged = OpenAIJudge("m", timeout=0.3)
    with pytest.raises(SourceError, match=said):
        judge(judged, retries=2, backoff=0.01, timeout=0.5, concurrency=1)(PROMPTS[:1], [["Red", "Red."]])
    assert len(state.requests) == asked
    found = judge(judged, retries=0, backoff=0.01, on_error="skip")(PROMPTS, COMPLETIONS)
    assert found.failed.all() and not found.pairs.weight.any()


def test_a_server_that_dies_in_mid_batch_costs_no_question_twice(served, tmp_path, monkeypatch):
    memory = Memory(tmp_path / "verdicts.sqlite")
    state = served(*["good"] * 9, "hang up")
    with pytest.raises(SourceError):
        judge(OpenAIJudge("m"), compare="all", concurrency=1, memory=memory)(PROMPTS, COMPLETIONS)
    first, again = state.questions[:9], served()
    found = judge(OpenAIJudge("m"), compare="all", memory=memory)(PROMPTS, COMPLETIONS)
    assert found.metrics["judge_cached"] == 9 and len(again.requests) == 3
    assert not set(first) & set(again.questions)
    judge(OpenAIJudge("other"), compare="all", memory=memory)(PROMPTS, COMPLETIONS)
    assert len(again.requests) == 3 + 12, "another model's verdicts are its own"


@pytest.mark.parametrize("trouble", [401, 429, 500, "garbage", "hang up"])
def test_the_key_is_never_said(served, tmp_path, caplog, trouble):
    """A server may say it back: it stands in no message, log, file or representation."""
    import traceback

    served(trouble, echo=True)
    caplog.set_level(logging.DEBUG)
    judged, memory = OpenAIJudge("m"), Memory(tmp_path / "verdicts.sqlite")
    source = judge(judged, on_error="raise", memory=memory)
    with pytest.raises(SourceError) as caught:
        source(PROMPTS, COMPLETIONS)
    judge(judged, on_error="skip", memory=memory)(PROMPTS, COMPLETIONS)
    with pytest.raises(JudgeError) as direct:
        judged(PROMPT, "a", "b")
    words = "".join(traceback.format_exception(caught.value) + traceback.format_exception(direct.value))
    words += caplog.text + repr(judged) + repr(source) + json.dumps(judged.identity)
    words += "".join(path.read_bytes().decode("latin1") for path in tmp_path.iterdir())
    assert KEY not in words and "sk-very" not in words
    assert "***" in words or trouble == "hang up"


def test_user_and_password_of_an_address_are_not_said(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:word@127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"judge m: http://127.0.0.1:9/v1: .*refused") as caught:
        OpenAIJudge("m").check()
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPENAI_API_KEY", "", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", "  ", "OPENAI_API_KEY is not set"),
        ("OPENAI_BASE_URL", "nonsense", "OPENAI_BASE_URL must be the address of a server"),
        ("OPENAI_BASE_URL", "ftp://host/v1", "OPENAI_BASE_URL must be the address of a server"),
        ("OPENAI_BASE_URL", "http://", "OPENAI_BASE_URL"),
    ],
)
def test_a_missing_key_and_an_address_that_is_none(monkeypatch, name, value, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        OpenAIJudge("m")


@pytest.mark.parametrize("trouble", [401, 404, 500, "hang up"])
def test_a_judge_is_known_to_be_down_before_anything_is_computed(served, trouble):
    served(trouble)
    with pytest.raises(ValueError, match="judge m: http://127"):
        OpenAIJudge("m").check()
    served("garbage")
    OpenAIJudge("m").check()  # it is there


def test_a_server_that_never_comes_to_the_end_of_its_answer_is_left(served):
    served("drip")
    with pytest.raises(ValueError, match=r"judge m: http://127\S+ no answer within 0\.3 s"):
        OpenAIJudge("m", timeout=0.3).check()


def test_a_rubric_names_columns(served, tmp_path):
    state = served()
    path = tmp_path / "rubric.txt"
    path.write_text('Right is {answer}.\n{prompt}\nA: {a}\nB: {b}\nSay {"verdict": "A"} { or } {} {"x"}')
    source = judge(OpenAIJudge("m", rubric=read_rubric(path)))
    assert source.columns.required == ("answer",)
    source(PROMPTS[:1], [["{b}", "4"]], answer=[4])
    assert state.questions == ['Right is 4.\nName a {colour}.\nA: {b}\nB: 4\nSay {"verdict": "A"} { or } {} {"x"}']
    with pytest.raises(SourceError, match="column 'answer'"):
        source(PROMPTS[:1], [["a", "b"]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{prompt}", "has no {a} and no {b}"),
        ("{prompt} {a}", "has no {b}"),
        ("{prompt} {b} {A}", "has no {a}"),
        ("", "has no {a} and no {b}"),
    ],
)
def test_a_rubric_without_both_replies_is_refused(tmp_path, text, message):
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(ValueError, match=f"r.txt {message}"):
        read_rubric(tmp_path / "r.txt")


def test_a_rubric_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "r.txt").write_bytes(b"\xff\xfe{a}{b}")
    for path in (tmp_path / "r.txt", tmp_path / "none.txt", tmp_path):
        with pytest.raises(ValueError, match=f"rubric: {path} cannot be read"):
            read_rubric(path)


def test_a_conversation_has_its_roles():
    prompt = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"})
    assert "system: Be brief.\n\nuser: Hm?" in Rubric().filled(prompt, "a", "b", {})
