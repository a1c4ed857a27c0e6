"""Problems of reasoning-gym: every generator that is offered is scored as one would guess, and none is met twice."""

import itertools
import json
import multiprocessing

import pytest

from pairgrpo_jax.lm.data.gym import NOT_OFFERED, Gym
from pairgrpo_jax.lm.rewards.verifiers import Own

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym (extra: gym)")

EASY = "reasoning-gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
SAID = ("{}", "The answer is {}.", "I think so:\n<answer>{}</answer> Yes.", "\\boxed{{{}}}", "So the answer is **{}**")
WRONG = ("", "I do not know.", "12345", "1{}", "The answer is 1{}", "True", "False", "0")


def text(rows):
    return [row.prompt[-1]["content"] for row in rows]


def paid(gym, entry, replies):
    return Own(gym)([()], [replies], [entry])[0]


def test_the_scorer_is_asked_about_the_answer_alone():
    gym = Gym.parse(EASY)
    entry = gym.entry(0, 0) | {"answer": "6"}
    assert gym.score("16", entry) == 0.5 and gym.score("The answer is 6", entry) < 0.1  # what it pays itself
    right = ["6", "**6**", "The answer is 6", "It is 6, as 1 + 5 = 6.", "6.0", "+6", "\\boxed{6} of 7"]
    wrong = ["16", "", "-6", "61", "6 or 7", "The answer is 16.", "six", "\u22126"]
    assert paid(gym, entry, right) == [1.0] * len(right)
    assert paid(gym, entry, wrong) == [0.0] * len(wrong)


def test_a_scorer_that_raises_is_counted(caplog):
    gym = Gym.parse("reasoning-gym:prime_factorization")
    entry = gym.entry(0, 0)
    assert paid(gym, entry, ["2 by something", entry["answer"]]) == [0.0, 1.0]
    assert "verify:own: the scorer refused 1 of 2 replies, the first with ValueError" in caplog.text


def test_held_out_problems_are_never_trained_on():
    gym = Gym.parse(EASY, "Be brief.")
    held_out = gym.held_out(64)
    trained = [next(gym.training(3, place)) for place in range(600)]
    assert 20 < len(held_out) < 64 and len(set(text(held_out))) == len(held_out)  # of about 200 problems
    assert len(set(text(trained))) > 100 and not set(text(trained)) & set(text(held_out))
    assert held_out[0].prompt[0] == {"role": "system", "content": "Be brief."}
    assert held_out[0].columns["answer"] == held_out[0].columns["entry"]["answer"]


def test_the_stream_is_endless_seeded_and_random_access():
    gym = Gym.parse("reasoning-gym:leg_counting")
    first = text(next(gym.training(0, place)) for place in range(40))
    assert text(next(gym.training(0, place)) for place in (39, 7)) == [first[39], first[7]]
    others = [text(next(gym.training(seed, place)) for place in range(40)) for seed in (1, 2)]
    assert len({*first, *others[0], *others[1]}) == 120  # reasoning-gym's own neighbouring seeds share all but one
    assert next(gym.training(0, 10**6)).columns["answer"]


BAD = {
    "chain_sums": "no generator 'chain_sums'; did you mean 'chain_sum'?",
    "chain_sum?min_term=2": "no option 'min_term'; did you mean 'min_terms'?",
    "chain_sum?seed=3": "seed is not an option here",
    "chain_sum?min_terms=3&max_terms=2": "refuses its options: max_terms must be >= min_terms",
    "chain_sum?min_terms=two": "refuses its options",
    "chain_sum?min_terms": "refuses its options",
    "puzzle24": "is not offered: its scorer pays for an expression of any numbers",
    "": "no generator ''; it has ab",
}


@pytest.mark.parametrize("name", BAD)
def test_a_generator_or_option_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match=r"^data: ") as error:
        Gym.parse(f"reasoning-gym:{name}")
    assert BAD[name] in str(error.value)


def test_options_are_json():
    gym = Gym.parse("reasoning-gym:number_sorting?min_numbers=2&max_numbers=2&min_decimals=0&max_decimals=0")
    assert dict(gym.options)["max_numbers"] == 2 and len(json.loads(gym.entry(0, 0)["answer"].replace("'", '"'))) == 2
    gym = Gym.parse('reasoning-gym:basic_arithmetic?operators=["%2B"]&allow_parentheses=false')
    assert not any(x in text([next(gym.training(0, i))])[0] for i in range(5) for x in "*/()")


def generators():
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - set(NOT_OFFERED))


def check(name, queue):
    """In a process of its own: some generators take seconds and gigabytes."""
    gym = Gym(name)
    rows = list(itertools.islice((row for place in itertools.count() for row in gym.training(0, place)), 3))
    problems = []
    for row in rows:
        answer, entry = row.columns["answer"], row.columns["entry"]
        if 0.0 in (found := paid(gym, entry, [said.format(answer) for said in SAID])):
            problems.append(("missed", answer, found))
        others = [r.columns["answer"] for r in rows if r.columns["answer"] != answer]
        replies = (*others, *(wrong.format(answer) for wrong in WRONG))
        replies = [x for x in replies if x != answer and (x, answer) != ("0", "0.0")]
        problems += [("paid", x, answer) for x, p in zip(replies, paid(gym, entry, replies)) if p]
    queue.put(problems)


# Another way to say the right answer, which the scorers take: leading zeros, a constant of integration, digits ignored.
ALSO_RIGHT = ("simple_integration", "intermediate_integration", "quantum_lock", "tower_of_hanoi")


@pytest.mark.slow
@pytest.mark.parametrize("name", generators())
def test_an_offered_generator_pays_the_right_answer_and_nothing_else(name):
    queue = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=check, args=(name, queue))
    process.start()
    try:
        problems = queue.get(timeout=120)
    finally:
        process.kill()
    if name in ALSO_RIGHT:
        problems = [p for p in problems if not (p[0] == "paid" and p[1].endswith(p[2]))]
    assert not problems, json.dumps(problems)[:500]
