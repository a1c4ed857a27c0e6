"""Preference sources: every way in which a user's function can fail, and what comes of it."""

import asyncio
import functools
import re
import time

import jax.numpy as jnp
import numpy as np
import pytest

from pairgrpo_jax.lm.data import Columns
from pairgrpo_jax.lm.rewards.sources import (
    Judgement,
    SourceError,
    UnfitError,
    compares,
    dataset_labels,
    head_source,
    judge,
    judged,
    reward_function,
)

PROMPTS = [({"role": "user", "content": str(i)},) for i in range(3)]
COMPLETIONS = [["a", "bb", "ccc", "dddd"], ["x", "x", "xx", "y"], ["", "pp", "p", "ppp"]]
LENGTHS = np.array([[1, 2, 3, 4], [1, 1, 2, 1], [0, 2, 1, 3]], np.float32)


def length(prompts, completions):
    return [[len(text) for text in group] for group in completions]


async def slow_length(prompts, completions):
    await asyncio.sleep(0.001)
    return length(prompts, completions)


def raises(prompts, completions):
    raise KeyError("model server")


def hangs(prompts, completions):
    time.sleep(5)


async def hangs_async(prompts, completions):
    await asyncio.sleep(5)


def returns(value):
    return lambda prompts, completions: value


@pytest.mark.parametrize("function", [length, slow_length, lambda p, c: np.concatenate(length(p, c))])
def test_rewards(function):
    rewards, pairs, failed, *_ = reward_function(function)(PROMPTS, COMPLETIONS)
    np.testing.assert_array_equal(rewards, LENGTHS)
    assert rewards.dtype == np.float32 and pairs is None and not failed.any()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"requires_grad": True}, {"dtype": "float16"}])
def test_rewards_may_be_tensors_of_torch(options, flat):
    torch = pytest.importorskip("torch")
    options = options | ({"dtype": getattr(torch, options["dtype"])} if "dtype" in options else {})
    whole = torch.tensor(LENGTHS.reshape(-1 if flat else LENGTHS.shape).tolist(), **options)
    for values in (whole, list(whole), [list(row) for row in whole] if not flat else tuple(whole)):
        np.testing.assert_array_equal(reward_function(returns(values))(PROMPTS, COMPLETIONS).rewards, LENGTHS)


def test_rewards_may_be_bfloat16_of_jax():
    values = jnp.asarray(LENGTHS, jnp.bfloat16)
    np.testing.assert_array_equal(reward_function(returns(values))(PROMPTS, COMPLETIONS).rewards, LENGTHS)


def test_weighted_sum():
    source = reward_function([length, slow_length, returns(np.ones((3, 4)))], weights=[1.0, -0.5, 10.0])
    np.testing.assert_allclose(source(PROMPTS, COMPLETIONS).rewards, LENGTHS / 2 + 10)


def test_async_function_inside_a_running_loop():
    async def notebook():
        return reward_function(slow_length)(PROMPTS, COMPLETIONS)

    np.testing.assert_array_equal(asyncio.run(notebook()).rewards, LENGTHS)


FAILURES = {
    "raises": (raises, "raises failed: KeyError: 'model server'"),
    "too few groups": (returns([[1.0] * 4] * 2), r"3 lists of 4 rewards or 12 in one, got \(2, 4\)"),
    "ragged": (returns([[1.0] * 4, [1.0] * 3, [1.0] * 4]), "3 lists of 4"),
    "flat, wrong length": (returns([1.0] * 11), "got .11"),
    "not a list": (returns(-3.0), "failed: expected 3 lists of 4 rewards or 12 in one, got -3.0"),
    "nothing": (returns(None), "failed: expected 3 lists of 4 rewards or 12 in one, got None"),
    "one text": (returns("123456789012"), "in one, got '123456789012'"),
    "by index": (returns(dict.fromkeys(range(12), 1.0)), r"in one, got \{0: 1.0"),
    "text": (returns([["good"] * 4] * 3), "12 in one, each a number or None, got 'good'"),
    "a number as text": (returns([["3"] * 4] * 3), "12 in one, each a number or None, got '3'"),
    "bytes": (returns([[b"3"] * 4] * 3), "each a number or None, got b'3'"),
    "complex": (returns([[1j] * 4] * 3), "each a number or None, got 1j"),
    "hangs": (hangs, "TimeoutError: no answer within 0.05 s"),
    "hangs async": (hangs_async, "no answer within 0.05 s"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failure_of_a_batch(name):
    function, message = FAILURES[name]
    start = time.monotonic()
    with pytest.raises(SourceError, match=message):
        reward_function(function, timeout=0.05)(PROMPTS, COMPLETIONS)
    rewards, _, failed, *_ = reward_function([length, function], timeout=0.05, on_error="skip")(PROMPTS, COMPLETIONS)
    assert failed.all() and not rewards.any()
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, 1e39])
def test_a_bad_reward_fails_its_group_alone(bad):
    values = [[1.0, 2.0, 3.0, 4.0], [1.0, bad, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]
    with pytest.raises(SourceError, match=r"groups \[1\] of 3"):
        reward_function(returns(values))(PROMPTS, COMPLETIONS)
    rewards, _, failed, *_ = reward_function(returns(values), on_error="skip")(PROMPTS, COMPLETIONS)
    assert failed.tolist() == [False, True, False]
    np.testing.assert_array_equal(rewards, [values[0], [0.0] * 4, values[2]])


def test_what_a_function_does_not_take_is_not_tried_again(caplog):
    @functools.wraps(length)
    def one(completions):
        return 1.0

    @functools.wraps(slow_length)
    async def one_later(completions):
        return 1.0

    for timeout in (None, 5.0):
        for function in (one, one_later):
            source = reward_function(function, retries=3, timeout=timeout, on_error="skip")
            with pytest.raises(UnfitError, match=r"length cannot be used: TypeError: .* takes 1 positional argument"):
                source(PROMPTS, COMPLETIONS)

    def inside(prompts, completions):
        return len(3)  # type: ignore[arg-type]

    with pytest.raises(SourceError, match=r"inside failed \(2 tries\): TypeError"):
        reward_function(inside, retries=1)(PROMPTS, COMPLETIONS)
    assert caplog.text.count("trying again") == 1


def test_retries():
    calls = []

    def flaky(prompts, completions):
        calls.append(1)
        return raises(prompts, completions) if len(calls) < 3 else length(prompts, completions)

    with pytest.raises(SourceError, match="2 tries"):
        reward_function(flaky, retries=1)(PROMPTS, COMPLETIONS)
    calls.clear()
    np.testing.assert_array_equal(reward_function(flaky, retries=2)(PROMPTS, COMPLETIONS).rewards, LENGTHS)
    assert len(calls) == 3


def test_columns_reach_the_functions_that_name_them():
    heard = {}

    def exact(prompts, completions, answer, level="easy"):
        heard["exact"] = answer, level
        return [[float(text == a) for text in group] for group, a in zip(completions, answer)]

    async def everything(prompts, completions, **columns):
        heard["everything"] = columns
        return np.zeros((3, 4))

    source = reward_function([exact, everything, length], [1.0, 1.0, 0.0])
    assert source.columns == Columns(("answer",), ("level",), True)
    rewards = source(PROMPTS, COMPLETIONS, answer=["bb", "x", "none"], level=[1, 2, 3], other=[4, 5, 6]).rewards
    np.testing.assert_array_equal(rewards, [[0, 1, 0, 0], [1, 1, 0, 0], [0] * 4])
    assert heard["exact"] == (["bb", "x", "none"], [1, 2, 3])
    assert heard["everything"] == {"answer": ["bb", "x", "none"], "level": [1, 2, 3], "other": [4, 5, 6]}
    source(PROMPTS, COMPLETIONS, answer=["a"] * 3)
    assert heard["exact"][1] == "easy" and list(heard["everything"]) == ["answer"]
    with pytest.raises(SourceError, match="exact asks for a column 'answer', and there is none"):
        source(PROMPTS, COMPLETIONS)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_judge_gets_the_value_of_its_prompt(asynchronous):
    def nearer(prompt, a, b, *, target):
        return int(abs(len(b) - target) < abs(len(a) - target))

    async def slowly(prompt, a, b, *, target):
        return nearer(prompt, a, b, target=target)

    source = judge(slowly if asynchronous else nearer, both_orders=True)
    assert source.columns == Columns(("target",))
    _, pairs, _, *_ = source(PROMPTS, COMPLETIONS, target=[4, 2, 0])
    np.testing.assert_array_equal(pairs.preferred, [[1, 3], [0, 2], [0, 2]])
    np.testing.assert_array_equal(pairs.weight, [[1, 1], [0, 1], [1, 1]])


def longer(prompt, a, b):
    return None if len(a) == len(b) else int(len(b) > len(a))


async def longer_async(prompt, a, b):
    await asyncio.sleep(0.02)
    return longer(prompt, a, b)


@pytest.mark.parametrize("function", [longer, longer_async])
def test_judge(function):
    start = time.monotonic()
    rewards, pairs, failed, *_ = judge(function)(PROMPTS, COMPLETIONS)
    assert rewards is None and not failed.any() and time.monotonic() - start < 5
    np.testing.assert_array_equal(pairs.preferred, [[1, 3], [0, 2], [1, 3]])
    np.testing.assert_array_equal(pairs.rejected, [[0, 2], [1, 3], [0, 2]])
    np.testing.assert_array_equal(pairs.weight, [[1, 1], [0, 1], [1, 1]])


def test_judge_compares_all():
    _, pairs, _, *_ = judge(longer, compare="all")(PROMPTS, COMPLETIONS)
    assert pairs.weight.shape == (3, 6)
    np.testing.assert_allclose(pairs.weight.sum(-1), [2, 1, 2])
    lengths = np.take_along_axis(LENGTHS, np.asarray(pairs.preferred), 1) - np.take_along_axis(
        LENGTHS, np.asarray(pairs.rejected), 1
    )
    assert (lengths[np.asarray(pairs.weight) > 0] > 0).all()


def test_both_orders_turn_a_position_bias_into_ties():
    _, pairs, failed, *_ = judge(lambda prompt, a, b: 0, both_orders=True)(PROMPTS, COMPLETIONS)
    assert not pairs.weight.any() and not failed.any()
    _, pairs, _, *_ = judge(longer, both_orders=True)(PROMPTS, COMPLETIONS)
    np.testing.assert_array_equal(pairs.weight, judge(longer)(PROMPTS, COMPLETIONS).pairs.weight)


def broken(prompt, a, b):
    if prompt[0]["content"] == "1":
        raise OSError("no line")
    return longer(prompt, a, b)


async def broken_async(prompt, a, b):
    return broken(prompt, a, b)


async def blocks(prompt, a, b):
    time.sleep(5)


def odd(prompt, a, b):
    return "a" if prompt[0]["content"] == "1" else longer(prompt, a, b)


def stuck(prompt, a, b):
    if prompt[0]["content"] == "1":
        time.sleep(5)
    return longer(prompt, a, b)


@pytest.mark.parametrize("function", [broken, broken_async, odd, stuck])
def test_judge_failures(function):
    with pytest.raises(SourceError, match=r"no line|expected 0, 1 or None|no answer"):
        judge(function, timeout=0.1)(PROMPTS, COMPLETIONS)
    _, pairs, failed, *_ = judge(function, timeout=0.1, on_error="skip")(PROMPTS, COMPLETIONS)
    assert failed.tolist() == [False, True, False]
    np.testing.assert_array_equal(pairs.weight.sum(-1), [2, 0, 2])


def test_a_judge_that_blocks_its_loop_is_left_behind():
    start = time.monotonic()
    _, pairs, failed, *_ = judge(blocks, timeout=0.1, on_error="skip")(PROMPTS, COMPLETIONS)
    assert failed.all() and not pairs.weight.any() and time.monotonic() - start < 3


def test_judge_retries():
    calls = []

    def flaky(prompt, a, b):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no line")
        return longer(prompt, a, b)

    assert not judge(flaky, retries=1, backoff=0)(PROMPTS, COMPLETIONS).failed.any()
    assert len(calls) == 6  # "x" and "x" are a tie without asking


def test_dataset_labels():
    _, pairs, failed, *_ = dataset_labels(PROMPTS, [c[:2] for c in COMPLETIONS])
    np.testing.assert_array_equal(pairs.preferred, [[0]] * 3)
    np.testing.assert_array_equal(pairs.rejected, [[1]] * 3)
    assert not failed.any()
    with pytest.raises(ValueError, match="K = 4"):
        dataset_labels(PROMPTS, COMPLETIONS)


def test_head_source_gives_the_rewards_of_the_tokens(smollm2):
    from pairgrpo_jax.lm import Policy
    from pairgrpo_jax.lm.data import encode_prompt, encode_reply, pad_texts
    from pairgrpo_jax.lm.rewards.reward_model import load_head, score_and_reward

    policy, head = Policy(smollm2, smollm2.params), load_head("helpful-a")
    long = ({"role": "user", "content": "why " * 60},)
    rewards, pairs, failed, *_ = head_source(policy, head, prompt_tokens=48)([PROMPTS[0], long], COMPLETIONS[:2])
    assert pairs is None and failed.tolist() == [False, True] and not rewards[1].any()
    completions, lengths = pad_texts([encode_reply(smollm2, text, 32) for text in COMPLETIONS[0]])
    prompt = pad_texts([encode_prompt(smollm2, PROMPTS[0], 48)])
    _, want = score_and_reward(policy, head, *prompt, completions[None], lengths[None])
    np.testing.assert_allclose(rewards[0], want[0], atol=1e-3)
    assert head_source(policy, head, prompt_tokens=2)(PROMPTS, COMPLETIONS).failed.all()


def test_bad_arguments():
    for bad in ({"timeout": 0.0}, {"retries": -1}, {"on_error": "ignore"}, {"weights": [1.0, 2.0]}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            reward_function(length, **bad)
    for none in ([], 3, "mine:short", None):
        with pytest.raises(ValueError, match=re.escape(f"of at least one, got {none!r}")):
            reward_function(none)
    for bad in ({"weights": 3}, {"weights": ["a", "b"]}, {"names": 3}, {"names": "ab"}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected 2"):
            reward_function([length, length], **bad)
    with pytest.raises(ValueError, match=r"memory: expected a Memory, as Memory\('verdicts.sqlite'\)"):
        judge(longer, memory="verdicts.sqlite")
    with pytest.raises(ValueError, match="compare"):
        judge(longer, compare="some")
    with pytest.raises(ValueError, match="callable judge"):
        judge(5)
    with pytest.raises(ValueError, match="even number"):
        judge(longer)(PROMPTS, [c[:3] for c in COMPLETIONS])
    with pytest.raises(ValueError, match="K >= 1 texts for each of 3 prompts"):
        reward_function(length)(PROMPTS, COMPLETIONS[:2])


@pytest.mark.parametrize(
    "function",
    [
        lambda completions, **columns: None,
        lambda completions, answer: None,
        lambda completions, prompts: None,
        lambda x, prompts: None,
        lambda x: None,
        lambda prompt, completion: 1.0,
        lambda prompt, a, b: 0,
    ],
)
def test_a_function_that_takes_something_else_first_is_refused(function):
    """As those of TRL, which are called by name, with flat lists."""
    with pytest.raises(ValueError, match=r"must take \(prompts, completions\) first, by position"):
        reward_function(function)
    reward_function([lambda p, c: None, lambda prompts, completions, *, answer=None: None, lambda *both: None, max])


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: 0,
        lambda prompt, a: 0,
        lambda prompt, *, a, b: 0,
        lambda a, b, prompt: 0,
        lambda prompt, b, a: 0,
        lambda prompts, completions, answer: 0,
    ],
)
def test_a_judge_that_takes_something_else_first_is_refused(function):
    with pytest.raises(ValueError, match=r"function: <lambda> must take \(prompt, a, b\) first, by position.*it takes"):
        judge(function)
    for good in (lambda p, x, y: 0, lambda prompt, a, b, *, answer=None: 0, lambda *all: 0, lambda p, *two, **rest: 0):
        judge(good)
    judge(max)


def test_a_function_is_no_source():
    with pytest.raises(UnfitError, match=r"got \[\[1, 2.*; make a source of length with reward_function or judge"):
        judged(length, PROMPTS, COMPLETIONS)


def test_each_reward_by_its_name():
    source = reward_function([length, length, returns([[1.0, float("nan"), 1, 1]] * 3)], names=["a", "b", "c"])
    judgement, each = judged(reward_function([length, length], [1.0, 2.0]), PROMPTS, COMPLETIONS)
    assert list(each) == ["length", "length.1"] and (judgement.rewards == 3 * LENGTHS).all()
    assert list(source.each.__self__.names) == ["a", "b", "c"]
    judgement, each = judged(lambda p, c: Judgement(LENGTHS, None, np.array([0, 1, 0], bool)), PROMPTS, COMPLETIONS)
    assert np.isnan(each["reward"][1]).all() and (each["reward"][[0, 2]] == LENGTHS[[0, 2]]).all()
    assert judged(judge(longer), PROMPTS, COMPLETIONS)[1] == {} and compares(judge(longer)) and not compares(source)
    with pytest.raises(ValueError, match="names: expected 1"):
        reward_function(length, names=[])
