"""Asking a judge: how many questions at once, again, and never twice; what is kept of it."""

import asyncio
import dataclasses
import functools
import importlib
import inspect
import os
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from pairgrpo_jax.lm.rewards.asking import Answer, Asker, JudgeError, Manner, Memory, Question, digest, run
from pairgrpo_jax.lm.rewards.sources import SourceError, UnfitError, judge
from pairgrpo_jax.lm.rewards.sources.identity import identity_of

PROMPTS = [({"role": "user", "content": str(i)},) for i in range(3)]
COMPLETIONS = [["a", "bb", "ccc", "dddd"], ["x", "xx", "xxx", ""], ["", "pp", "p", "ppp"]]


class Busy:
    """A judge of lengths that remembers how many asked at once, and what."""

    def __init__(self, seconds=0.01):
        self.seconds, self.now, self.most, self.asked, self.lock = seconds, 0, 0, [], threading.Lock()

    def enter(self, prompt, a, b):
        with self.lock:
            self.asked.append((prompt[0]["content"], a, b))
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self, a, b):
        with self.lock:
            self.now -= 1
        return None if len(a) == len(b) else int(len(b) > len(a))

    def sync(self, prompt, a, b):
        self.enter(prompt, a, b)
        time.sleep(self.seconds)
        return self.leave(a, b)

    async def later(self, prompt, a, b):
        self.enter(prompt, a, b)
        await asyncio.sleep(self.seconds)
        return self.leave(a, b)


@pytest.mark.parametrize("kind", ["sync", "later"])
@pytest.mark.parametrize("limit", [1, 4])
def test_so_many_at_once_and_no_more(kind, limit):
    busy = Busy()
    found = judge(getattr(busy, kind), compare="all", concurrency=limit)(PROMPTS, COMPLETIONS)
    assert busy.most == limit and len(busy.asked) == 18 and found.metrics["judge_questions"] == 18
    assert found.metrics["judge_latency"] >= busy.seconds and found.metrics["judge_seconds"] > 0


@pytest.mark.parametrize("compare", ["all", "sort", "4"])
def test_what_is_remembered_is_not_asked_again(tmp_path, compare):
    busy = Busy(0)
    memory = Memory(tmp_path / "verdicts.sqlite")
    first = judge(busy.sync, compare=compare, both_orders=True, memory=memory)(PROMPTS, COMPLETIONS)
    asked = len(busy.asked)
    assert asked == len(set(busy.asked)) == first.metrics["judge_questions"] and first.metrics["judge_cached"] == 0
    memory = Memory(tmp_path / "verdicts.sqlite")  # as after a crash
    again = judge(busy.sync, compare=compare, both_orders=True, memory=memory)(PROMPTS, COMPLETIONS)
    assert len(busy.asked) == asked == again.metrics["judge_cached"] and again.metrics["judge_questions"] == 0
    for one, other in zip(first.pairs, again.pairs):
        np.testing.assert_array_equal(one, other)


def test_the_same_question_in_one_batch_is_asked_once():
    busy = Busy()
    found = judge(busy.sync, compare="all")(PROMPTS[:1], [["a", "bb", "a", "bb"]])
    assert sorted(busy.asked) == [("0", "a", "bb"), ("0", "bb", "a")]  # "a", "a" is a tie without asking
    assert found.metrics["judge_cached"] == 2 and (np.asarray(found.pairs.weight) > 0).sum() == 4


@pytest.mark.parametrize(
    "change", [{"prompt": 1}, {"a": "other"}, {"b": "other"}, {"rubric": 2}, {"columns": {"k": 1}}]
)
def test_a_question_is_all_that_the_judge_is_shown(change):
    question = {"rubric": 1, "prompt": 0, "a": "x", "b": "y", "columns": {}}
    assert digest(*question.values()) == digest(*question.values()) != digest(*(question | change).values())
    assert digest("j", [], "x", "y", {}) != digest("j", [], "y", "x", {})


def test_a_batch_that_fails_keeps_the_verdicts_it_has(tmp_path):
    memory, busy = Memory(tmp_path / "verdicts.sqlite"), Busy(0)
    busy.limit = 7

    def dies(prompt, a, b):
        if len(busy.asked) >= busy.limit:
            raise OSError("no line")
        return busy.sync(prompt, a, b)

    with pytest.raises(SourceError, match=r"dies failed: OSError: no line"):
        judge(dies, compare="all", concurrency=1, memory=memory)(PROMPTS, COMPLETIONS)
    assert len(busy.asked) == 7

    busy.limit = 18
    found = judge(dies, compare="all", memory=memory)(PROMPTS, COMPLETIONS)
    assert found.metrics["judge_cached"] == 7 and len(busy.asked) == 18 == len(set(busy.asked))


LONGER = "def longer(prompt, a, b, *, more=0):\n    return None if len(a) == len(b) else int(len(b) > len(a))\n"
AGAIN = [("a", LONGER), ("a", f"# a comment\n\n{LONGER}")]
ANEW = [
    ("b", LONGER),
    ("a", LONGER.replace(">", "<")),
    ("a", LONGER.replace("None", "0")),
    ("a", LONGER.replace("more=0", "more=1")),
    ("a", LONGER.replace("len(a) ==", "(lambda: len(a))() ==")),
    ("a", LONGER.replace("longer", "other")),
]


def key_of(function):
    return digest(identity_of(function))


def loaded(module, text):
    space = {"__name__": module}
    exec(text, space)
    return next(x for x in space.values() if inspect.isfunction(x))


def test_a_judge_is_known_by_its_module_name_and_code():
    first = key_of(loaded("a", LONGER))
    assert {key_of(loaded(*one)) for one in AGAIN} == {first}
    assert len({first, *(key_of(loaded(*one)) for one in ANEW)}) == 1 + len(ANEW)


def test_a_judge_is_known_again_in_another_process(tmp_path, monkeypatch):
    text = f"import functools\n{LONGER}\nclass Grade:\n"
    text += "    def __call__(self, p, a, b):\n        return 'x' in {'x', 'y'}\n"
    text += (
        "part, one = functools.partial(longer, more={'x', 'y', 'z'}), Grade()\nfew = lambda p, a, b: a in {'x', 'y'}\n"
    )
    (tmp_path / "known.py").write_text(text)
    shown = """
import known
from pairgrpo_jax.lm.rewards.asking import digest
from pairgrpo_jax.lm.rewards.sources.identity import identity_of
print([digest(identity_of(f)) for f in (known.longer, known.part, known.one, known.few)])
"""
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", shown], env=env, check=True, capture_output=True, text=True)
    monkeypatch.syspath_prepend(tmp_path)
    known = importlib.import_module("known")
    assert done.stdout.strip() == str([key_of(f) for f in (known.longer, known.part, known.one, known.few)])


@dataclasses.dataclass
class Least:
    """A judge with a setting."""

    more: int = 0

    def __call__(self, prompt, a, b):
        """Whether b is so much longer."""
        return int(len(b) > len(a) + self.more)

    def method(self, prompt, a, b):
        """The same."""
        return self(prompt, a, b)


def enclosing(more):
    return lambda prompt, a, b: int(len(b) > len(a) + more)


def remembered(more):
    return functools.lru_cache(enclosing(more))


MADE = {
    "partial": lambda more: functools.partial(loaded("a", LONGER), more=more),
    "dataclass": Least,
    "method": lambda more: Least(more).method,
    "closure": enclosing,
    "wrapped": remembered,
    "partial of an object": lambda more: functools.partial(Least(more)),
    "identity": lambda more: type("Mine", (), {"identity": more, "__call__": len})(),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_judge_is_known_by_what_it_was_made_with(kind):
    made = MADE[kind]
    assert key_of(made(1)) == key_of(made(1)) != key_of(made(2))


def test_a_judge_of_another_code_is_asked_anew(tmp_path):
    memory = Memory(tmp_path / "verdicts.sqlite")
    one, other = loaded("a", LONGER), loaded("a", LONGER.replace(">", "<"))
    found = [judge(f, compare="all", memory=memory)(PROMPTS, COMPLETIONS) for f in (one, other, one)]
    assert [x.metrics["judge_questions"] for x in found] == [18, 18, 0]
    assert (np.asarray(found[0].pairs.preferred) != np.asarray(found[1].pairs.preferred)).any()


def test_a_number_of_questions_may_be_an_int():
    found = judge(lambda prompt, a, b: 0, compare=3)(PROMPTS, COMPLETIONS)
    assert found.metrics["judge_questions"] == 9
    with pytest.raises(ValueError, match=r"compare=7 must be in \[1, 6\]"):
        judge(lambda prompt, a, b: 0, compare=7)(PROMPTS, COMPLETIONS)


def test_a_judge_that_is_down_is_not_asked_for_every_question():
    calls = []

    def down(prompt, a, b):
        calls.append(1)
        raise OSError("no line")

    with pytest.raises(SourceError, match="no line"):
        judge(down, compare="all", concurrency=2, retries=1, backoff=0)(PROMPTS, COMPLETIONS)
    assert len(calls) <= 6
    found = judge(down, compare="all", concurrency=2, on_error="skip")(PROMPTS, COMPLETIONS)
    assert found.failed.all() and not found.pairs.weight.any()


def test_a_question_outlives_a_group_that_fails_while_another_waits_for_it():
    asked = []

    def fails(prompt, a, b):
        asked.append((a, b))
        if "maybe" in (a, b):
            raise OSError("no line")
        return 1

    groups = [["maybe", "yes", "no"], ["yes", "no", "no"]]  # "yes", "no" waits behind what fails the first group
    found = judge(fails, compare="all", concurrency=1, on_error="skip")(PROMPTS[:1] * 2, groups)
    assert found.failed.tolist() == [True, False] and asked == [("maybe", "yes"), ("yes", "no")]
    assert found.metrics["judge_questions"] == 1


def test_what_failed_is_not_asked_for_a_later_group_and_what_was_given_up_is():
    asked = []

    def question(name, error=None):
        def call():
            asked.append(name)
            if error:
                raise error
            return 1

        return Question(call, name)

    bad, good, other = question("bad", OSError("no line")), question("good"), question("other")

    async def program():
        asker = Asker(Manner(concurrency=1), None, stops=False)
        found = []
        for groups in ({0: [bad, good]}, {1: [bad, other], 2: [good]}):  # the last two come when the first has failed
            ways = (asker.answers(questions, group) for group, questions in groups.items())
            found += await asyncio.gather(*ways, return_exceptions=True)
        await asker.close()
        return found

    failed, joined, answered = run(program)
    assert isinstance(failed, JudgeError) and str(joined) == str(failed) and answered == [1.0]
    assert asked == ["bad", "good"]


def test_pauses_grow_and_keep_what_the_server_says():
    times = []

    def flaky(prompt, a, b):
        times.append(time.monotonic())
        if len(times) < 4:
            raise JudgeError("busy", pause=0.3 if len(times) == 3 else 0.0)
        return 0

    found = judge(flaky, retries=3, backoff=0.04)(PROMPTS[:1], [["a", "b"]])
    pauses = np.diff(times)
    assert 0.03 <= pauses[0] and 0.06 <= pauses[1] and 0.3 <= pauses[2]
    assert found.metrics["judge_retries"] == 3 and found.metrics["judge_questions"] == 1


def test_a_refusal_is_not_asked_again():
    calls = []

    def refuses(prompt, a, b):
        calls.append(1)
        raise JudgeError("no such model", again=False)

    with pytest.raises(SourceError, match="no such model"):
        judge(refuses, retries=5)(PROMPTS[:1], [["a", "b"]])
    assert len(calls) == 1


def test_tokens_and_their_price():
    found = judge(lambda prompt, a, b: Answer(1, 1000, 10), prices=(2.0, 50.0))(PROMPTS, COMPLETIONS)
    assert found.metrics["judge_prompt_tokens"] == 6000 and found.metrics["judge_completion_tokens"] == 60
    assert found.metrics["judge_cost"] == pytest.approx((6000 * 2 + 60 * 50) / 1e6)
    assert "judge_cost" not in judge(lambda prompt, a, b: 1)(PROMPTS, COMPLETIONS).metrics


def test_an_answer_that_is_no_verdict_was_paid_for_too():
    answers = iter([JudgeError("no line"), JudgeError("hm", tokens=(1000, 10)), Answer("?", 1000, 10), Answer(1, 1, 1)])

    def unsure(prompt, a, b):
        if isinstance(answer := next(answers), JudgeError):
            raise answer
        return answer

    found = judge(unsure, retries=3, backoff=0, prices=(1.0, 1.0))(PROMPTS[:1], [["a", "b"]])
    names = ("questions", "retries", "prompt_tokens", "completion_tokens", "cost")
    assert [found.metrics[f"judge_{name}"] for name in names] == [3, 3, 2001, 21, pytest.approx(2022e-6)]


@pytest.mark.parametrize("answer", ["0", 2, 0.5, float("nan"), [0], np.zeros(2), {"verdict": 0}])
def test_an_answer_that_is_none_fails_its_group(answer):
    found = judge(lambda prompt, a, b: answer if prompt[0]["content"] == "1" else 0, on_error="skip")(
        PROMPTS, COMPLETIONS
    )
    assert found.failed.tolist() == [False, True, False]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "error", [StopIteration, KeyboardInterrupt, SystemExit, StopAsyncIteration, asyncio.CancelledError]
)
def test_nothing_that_a_judge_raises_hangs_the_batch(error, asynchronous):
    def odd(prompt, a, b):
        raise error("odd")

    async def later(prompt, a, b):
        raise error("odd")

    with pytest.raises(SourceError, match=error.__name__):
        judge(later if asynchronous else odd)(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("content", [b"not a data base, but text that is longer than a header" * 9, None])
def test_a_file_that_holds_no_verdicts_is_named(tmp_path, content):
    path = tmp_path / "verdicts.sqlite"
    if content is None:
        with sqlite3.connect(path) as base:
            base.execute("CREATE TABLE verdicts (other TEXT)")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"verdicts\.sqlite: no file of verdicts"):
        judge(lambda prompt, a, b: 0, memory=Memory(path))(PROMPTS, COMPLETIONS)


def test_bad_manners_are_refused():
    with pytest.raises(ValueError, match="concurrency"):
        Manner(concurrency=0)
    with pytest.raises(ValueError, match="backoff"):
        Manner(backoff=-1)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("kind", [bool, np.bool_, lambda x: Answer(bool(x))], ids=["bool", "bool_", "Answer"])
def test_a_bool_is_no_verdict_and_nothing_more_is_asked(tmp_path, kind, on_error):
    """Of `len(a) < len(b)` one means that a is better; taken as 1 it would prefer b."""
    asked, memory = [], Memory(tmp_path / "verdicts.sqlite")

    def shorter(prompt, a, b):
        asked.append((a, b))
        return kind(len(a) < len(b))

    source = judge(shorter, compare="all", concurrency=1, retries=5, on_error=on_error, memory=memory)
    said = r"shorter cannot be used: return 0 for a, 1 for b, None for a tie, not (np\.)?(True|False)"
    for count in (1, 2):
        with pytest.raises(UnfitError, match=said):
            source(PROMPTS, COMPLETIONS)
        assert len(asked) == count


def test_a_bool_after_a_failure_ends_the_batch_too():
    def sometimes(prompt, a, b):
        if prompt[0]["content"] == "0":
            raise OSError("no line")
        return len(a) < len(b)

    with pytest.raises(UnfitError, match="not True"):
        judge(sometimes, concurrency=1, on_error="skip")(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_call_that_a_judge_does_not_take_is_not_tried_again(asynchronous):
    def two(a, b):
        return 0

    async def two_later(a, b):
        return 0

    misled = functools.wraps(loaded("a", LONGER))(two_later if asynchronous else two)
    with pytest.raises(UnfitError, match=r"longer cannot be used: TypeError: .*takes 2 positional arguments but 3"):
        judge(misled, retries=5, backoff=60, on_error="skip")(PROMPTS, COMPLETIONS)
    calls = []

    def inside(prompt, a, b):
        calls.append(1)
        return len(3) if len(calls) == 1 else 0  # type: ignore[arg-type]

    assert judge(inside, retries=1, backoff=0)(PROMPTS, COMPLETIONS).metrics["judge_retries"] == 1


@pytest.mark.parametrize("first", [np.int32(1), np.float32(1)], ids=lambda x: type(x).__name__)
def test_a_verdict_may_be_numpys(first):
    answer = {True: first, False: type(first)(False)}
    found = judge(lambda prompt, a, b: answer[b > a], compare="all")([PROMPTS[0]], [["a", "b"]])
    plain = judge(lambda prompt, a, b: int(b > a), compare="all")([PROMPTS[0]], [["a", "b"]])
    assert all(np.array_equal(x, y) for x, y in zip(found.pairs, plain.pairs)) and not found.failed.any()
