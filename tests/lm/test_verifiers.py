"""Verifiers: answers found in replies as people write them, and what cannot be read counted."""

import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairgrpo_jax.lm.data import load_prompts
from pairgrpo_jax.lm.rewards.answers import last_number, letter, numbers, stated, true_letter, true_number
from pairgrpo_jax.lm.rewards.sources import SourceError, readable, reward_function
from pairgrpo_jax.lm.rewards.verifiers import verifier

NUMBERS = {
    "18": 18,
    "1,234": 1234,
    "$1,234.50": Fraction(2469, 2),
    "12,345,678 people": 12345678,
    "12\\;345\\ 678": 12345678,
    "12\u202f345 m": 12345,
    "50%": 50,
    "-4": -4,
    "It is - 4": -4,
    "\u22124": -4,
    "-$5": -5,
    "5 - 4": 4,
    "16-10=6": 6,
    "-1 - -2": -2,
    "1/2": Fraction(1, 2),
    "-3 / 4": Fraction(-3, 4),
    ".5": Fraction(1, 2),
    "1.5e3": 1500,
    "18 is it. 5 more": 5,
    "**18**": 18,
    "#### 18": 18,
    "\\boxed{1{,}234} or 7": 1234,
    "<answer>7</answer> 8": 7,
    "The answer is 6. I took 2 steps.": 6,
    "The answer is **6**.": 6,
    "$ - 5": -5,
    "The answer is \\(18\\).": 18,
    "The answer is:\n\\[\n18\n\\]": 18,
    "\\boxed{18 \\text{ cm}}": 18,
    "The answer is 5 * 3 = $15.": 15,
    "The answer is 18 because 3 x 6 = 18": 18,
    "<answer>Step 1: 5\n\\boxed{72}</answer>": 72,
    "not 5 but 18": 18,
    '{"total": 18}': 18,
    "[18]; done!": 18,
    "The answer isn't 18": None,
    "The answer is 3 or 4": None,
    "72 cm^2": None,
    "\\frac{1}{2}": None,
    "\\sqrt{2}": None,
    "sqrt(2)": None,
    "3*4": None,
    "10^3": None,
    "5 million": None,
    "It is not 18": None,
    "1e300": None,
    "7 or 1e-999/3": None,
    "none at all": None,
    "": None,
}


@pytest.mark.parametrize("reply", NUMBERS)
def test_last_number(reply):
    assert last_number(reply) == NUMBERS[reply]


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "so {}.", "= {}", "({})", "${}$", "{} apples", "is {:,}"]))
def test_a_whole_number_is_read_however_it_is_put(number, said):
    assert last_number(said.format(number)) == number == true_number(said.format(number))


@given(st.decimals(-1000, 1000, allow_nan=False, places=3))
def test_a_decimal_is_read_exactly(number):
    assert numbers(f"about {number} metres") == [Fraction(number)]


SAID = ["so it is {}.", "The answer is {}", "The answer is {}.", "\\boxed{{{}}}", "<answer>{}</answer>", "so\n#### {}"]


@given(
    st.integers(-(10**6), 10**6),
    st.sampled_from(["m", "g", "l", "L", "s", "h", "W", "V", "N", "J", "cm", "kg", "pm", "m/s", "%", "°C", " m"]),
    st.sampled_from(SAID),
)
def test_a_unit_may_be_glued_to_a_number(number, unit, said):
    assert last_number(said.format(f"{number}{unit}")) == number == true_number(f"{number}{unit}")


@given(st.integers(0, 10**6), st.sampled_from("abcdefijknopqrtuvwxyzABDGKMTXY"), st.sampled_from(SAID))
def test_another_letter_is_none(number, letter, said):
    for text in (f"{number}{letter}", f"{letter}{number}m", f"${number}m", f"€{number}m", f"not {number}m"):
        assert last_number(said.format(text)) is None is true_number(text)


LONG = ["{}", "7 or {}", "-{}.5", "0.{}", "1/{}", "{}e9", "The answer is {}.", "\\boxed{{{}}}"]


@pytest.mark.parametrize("said", LONG)
def test_a_number_without_end_is_no_answer(said):
    assert last_number(said.format("7" * 5000)) is None is true_number(said.format("7" * 5000))
    assert paid("number", [(said.format("7" * 5000), "7")]) == [0]


TRUE_NUMBERS = {
    "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 40,000": 40000,
    7: 7,
    2.5: 2.5,
    1e-05: Fraction(1, 100000),
    "1e3": 1000,
    "1/3": Fraction(1, 3),
    "1/2 cup": Fraction(1, 2),
    "$18": 18,
    "-$18.50": -18.5,
    "€18": 18,
    "18 dollars": 18,
    "about 18": 18,
    "50%": 50,
    "60 km/h": 60,
    "18cm": 18,
    "20m": 20,
    "x = - 5": -5,
    "Total: 18": 18,
    "\\boxed{18}": 18,
    "\\$1{,}234": 1234,
    "**18** apples": 18,
}
NO_TRUE_NUMBERS = [None, True, math.nan, math.inf, "", "many", "3 < 5", "[3]", "5!", "5½", "1 1/2", "10:30", "18-20"]
NO_TRUE_NUMBERS += ["\\frac{3}{4}", "\\boxed{\\frac{3}{4}}", "\\sqrt{3}", "2\\sqrt{3}", "3^2", "x^2", "3*4", "2**3"]
NO_TRUE_NUMBERS += ["(3, 4)", "2,3", "x=5 or 7", "18 dollars and 5 cents", "16-10=6", "f(3)", "sqrt(3)", "log 5"]
NO_TRUE_NUMBERS += ["2x", "2π", "2pi", "x-5", "x - 5", "5 + x", "x + 5", "x/5", "5/x", "5 million", "minus 5", "not 5"]
NO_TRUE_NUMBERS += ["5M", "$5m", "2m + 3m", "20m^2", "A0", "H0m"]


@pytest.mark.parametrize("answer", TRUE_NUMBERS)
def test_true_numbers(answer):
    assert true_number(answer) == TRUE_NUMBERS[answer]


@pytest.mark.parametrize("answer", NO_TRUE_NUMBERS)
def test_what_is_not_one_number_is_no_true_number(answer):
    assert true_number(answer) is None


@pytest.mark.parametrize("said", ["The answer is {}.", "\\boxed{{{}}}", "<answer>{}</answer>", "so\n#### {}"])
@pytest.mark.parametrize("answer", [x for x in NO_TRUE_NUMBERS if isinstance(x, str) and "=6" not in x])
def test_what_is_no_true_number_is_none_where_a_reply_marks_it(answer, said):
    if answer != "5!" or "box" in said:  # elsewhere the end of a sentence
        assert last_number(said.format(answer)) is None


LETTERS = {
    "B": "B",
    "(B)": "B",
    "B) Paris": "B",
    "b.": "B",
    "The answer is B": "B",
    "The answer is A because B is wrong": "A",
    "answer: (b)": "B",
    "I think (C).": "C",
    "A dog is in B": "B",
    "**D**": "D",
    "\\boxed{C}, not B": "C",
    "B or C? C": "C",
    "not B or C but D": "D",
    "The answer is not A but B": "B",
    "C fits. B is incorrect.": "C",
    "C fits and B doesn't.": "C",
    "I choose C, since it isn't A": "C",
    "It is C; it cannot be A": "C",
    "It is B, because neither A nor C fits": "B",
    "A, B and C are wrong, so D": "D",
    "D fits; A, B, and C aren't right": "D",
    "It is NOT A, B or D. C": "C",
    "I don't think it is B, so C": "C",
    "The answer isn't A, it is C": "C",
    "The answer is D, A and B are wrong": "D",
    "I pick D and B isn't right": "D",
    "It isn't hard: A": "A",
    "i.e. B": "B",
    "The answer: e.g. B": "B",
    "A is for Apple": "A",
    "A would be best": "A",
    "It is\nA\nthis is all": "A",
    "A dog barks": None,
    "It rains.\nA dog barks": None,
    "A by-product": None,
    "I think so": None,
    "I guess so, and I was there": None,
    "nope": None,
    "": None,
}


@pytest.mark.parametrize("reply", LETTERS)
def test_letter(reply):
    assert letter(reply) == LETTERS[reply]


@pytest.mark.parametrize(
    "said",
    [
        "Option {} is correct.",
        "Therefore, {} is correct.",
        "{} is right, I think",
        "{} makes sense.",
        "I choose {} because it fits.",
        "So option {} would fit best.",
        "{other} is wrong, so {} is right.",
        "{other} isn't right, {} is.",
        "The best choice is {} and not {other}.",
        "I pick {} over the rest, rather than {other}.",
        "The choice, {} (and not {other} or {other}), is clear.",
    ],
)
def test_no_letter_is_read_less_than_another(said):
    for chosen, other in itertools.permutations("ABCDEFGHIJ", 2):
        assert letter(said.format(chosen, other=other)) == chosen


def test_true_letters():
    assert [true_letter(x) for x in ("B", "(b)", "B. Paris", 1)] == ["B"] * 4
    assert [true_letter(x) for x in ("Paris", "", None, -1, True, "e.g. B")] == [None] * 6


def test_what_is_stated():
    assert stated("\\boxed{\\frac{1}{2}} and \\boxed{x^{2}}") == "x^{2}"
    assert stated("\\boxed{1") is None and stated("no answer here") is None
    assert stated("<answer>1</answer> \\boxed{2} #### 3") == "1"


def paid(name, pairs, **options):
    replies, answers = zip(*pairs)
    source = reward_function(verifier(name), **options)
    return source([()] * len(pairs), [[r] for r in replies], answer=list(answers)).rewards.ravel().tolist()


MATH_RIGHT = [
    ("It is $1200", "1,200"),
    ("\\boxed{40,000}", "so #### 40,000"),
    ("- 4", "-4"),
    ("\u22124", -4),
    ("x = - 4", "-4"),
    ("**18**", "18"),
    ("50%", "50"),
    ("0.5", "1/2"),
    ("\\boxed{\\frac{2}{4}}", "\\frac{1}{2}"),
    ("$\\sqrt{2}$", "\\sqrt{2}"),
    ("\\boxed{1+2x}", "2x+1"),
    ("It costs 18 dollars.", "18"),
    ("48 + 24 = 72", "72"),
    ("10^3", "1000"),
    ("$\\frac{12}{4}$", "3"),
    ("$1.2 \\cdot 10^3$", "1200"),
    ("$1+\\sqrt{2}$", "1+\\sqrt{2}"),
    ("$2\\sqrt{3}$", "\\sqrt{12}"),
    ("$3+4i$", "4i+3"),
    ("$3 + 4 + x$", "x + 4 + 3"),
    ("$12\\;345$", "12345"),
    ("\\boxed{12\\ 345}", "$12\\,345$"),
    ("12345", "12~345"),
    ("\\boxed{BAC}", "$BAC$"),
    ("The answer is BAC.", "\\boxed{\\text{BAC}}"),
    ("$yx$", "$xy$"),
    ("0.00001", 1e-05),
    ("-0.00001", "-1e-05"),
    ("It is 1E-5.", "0.00001"),
    ("\\boxed{10^{-5}}", "#### 1e-05"),
    ("1000", "1e3"),
    ("10000000000000000000000", 1e22),
    ("$2e-1$", "2e - 1"),
]
MATH_WRONG = [
    ("81", "18"),
    ("", "18"),
    ("18 is it. 5 more", "18"),
    ("4", "-4"),
    ("10**10**10**10", "18"),
    ("5 - 4", "4"),
    ("48 + 24", "72"),
    ("48 + 24 =", "#### 72"),
    ("\\boxed{48+24}", "72"),
    ("6 * 12", "72"),
    ("$x = 3+4$", "7"),
    ("3 - 7", "-4"),
    ("$\\frac{1}{4} + \\frac{1}{4}$", "1/2"),
    ("2 * 3 * x", "6x"),
    ("\\boxed{2(3)}", "5"),
    ("\\boxed{2(3)}", "6"),
    ("$15\\;000$", "$12\\;000$"),
    ("\\boxed{CAB}", "$BAC$"),
    ("\\boxed{bac}", "\\boxed{BAC}"),
    ("BAC, or rather CAB", "$BAC$"),
]


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["in the main thread", "in a thread of its own"])
def test_math(options):
    pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    assert paid("math", MATH_RIGHT, **options) == [1.0] * len(MATH_RIGHT)
    assert paid("math", MATH_WRONG, **options) == [0.0] * len(MATH_WRONG)


BARE = [
    ("(1,2)", "(1,2)"),
    ("x^2+1", "x^2+1"),
    ("1+x^2.", "x^2+1"),
    ("2\\sqrt{3}", "2\\sqrt{3}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("x = 5", "5"),
    ("(24+48) = 72", "72"),
    ("2*sqrt(3)", "2\\sqrt{3}"),
]
SENTENCES = [
    ("Adding (24+48), I get 72", "72"),
    ("Let x be the number. Then 2x = 144, so x = 72", "72"),
    ("I think it's 72 (a lot)", "72"),
    ("c) 72", "72"),
    ("72 (b)", "72"),
    ("72 cm^2", "72"),
    ("The answer is x^2+1. I expanded it.", "x^2+1"),
    ("The answer is 72 because 24+48=72", "72"),
    ("The answer is 72. I added 2 of them.", "72"),
    ("The answer is 6, as 2+4=6 and not 5", "6"),
    ("The answer is:\n\\[\nx^2+1\n\\]", "x^2+1"),
    ("<answer>72 because 24+48=72</answer>", "72"),
    ("<answer>72. I added 2 of them</answer>", "72"),
    ("<answer>The total is 24+48=72 dollars</answer>", "72"),
    ("<answer>Step 1: 5\n\\boxed{72}</answer>", "72"),
]
ASIDE = [("2\\sqrt{3}", "2"), ("2\\sqrt{3}", "3"), ("(2,1)", "(1,2)"), ("x^2+2", "x^2+1"), ("72x", "72")]
ASIDE += [("<answer>48 + 24</answer>", "72"), ("The answer is 72. I added 2 of them.", "2")]


def test_an_expression_needs_no_dollars_where_it_is_all_there_is():
    pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    assert paid("math", BARE) == [1.0] * len(BARE)
    assert paid("math", SENTENCES) == [1.0] * len(SENTENCES)
    assert paid("math", ASIDE) == [0.0] * len(ASIDE)


MARKS = {
    "tag": "<think>24+48, or 7</think><answer>{}</answer> or {}",
    "tag on lines of its own": "<answer>\n{}\n</answer>\nNot {}.",
    "box": "So 24+48 it is: \\boxed{{{}}}, not {}.",
    "box in dollars": "So $24+48$ it is: $\\boxed{{{}}}$, not {}.",
    "box in a tag": "<answer>\\boxed{{{}}}</answer> or {}",
    "words": "Not {1}. The answer is {0}.",
    "bold words": "Not {1}. **Answer:** {0}",
    "words in a tag": "<answer>The answer is {}.</answer> or {}",
    "####": "Not {1}.\n#### {0}",
}
ANSWERS = {
    "math": [("72", "5"), ("x^2+1", "x^2+2"), ("(1,2)", "(2,1)"), ("\\frac{1}{2}", "2"), ("-4", "4"), ("x = 5", "6")],
    "number": [("72", "5"), ("1,234", "4"), ("-4", "4"), ("1/2", "2")],
    "choice": [("B", "C"), ("(D)", "A")],
}


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_reply_marks_goes_first_with_every_verifier(name, mark):
    if name == "math":
        pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    said = [MARKS[mark].format(*pair) for pair in ANSWERS[name]]
    right, wrong = zip(*ANSWERS[name])
    assert paid(name, list(zip(said, right))) == [1.0] * len(said)
    assert paid(name, list(zip(said, wrong))) == [0.0] * len(said)


def test_number_and_choice():
    marked = [("#### 20m", "20"), ("The answer is 20m.", "20"), ("The answer is 2x", "2"), ("#### 2m+2m", "2")]
    assert paid("number", marked) == [1, 1, 0, 0]
    assert paid("number", [("so 1,000", "#### 1000"), ("7", "8"), ("none", 3), ("-2", -2)]) == [1, 0, 0, 1]
    assert paid("choice", [("(B)", "B"), ("C", 1), ("The answer is B.", 1)]) == [1, 0, 1]


def test_format():
    source = reward_function(verifier("format", r"^<think>.*</think>\s*\S+$"))
    replies = ["<think>a\nb</think> 5", "5", "<think></think> five six"]
    np.testing.assert_array_equal(source([()], [replies]).rewards, [[1, 0, 0]])


@pytest.mark.parametrize("name", ["math", "number", "choice"])
def test_an_answer_that_cannot_be_read_fails_and_is_not_wrong(name):
    if name == "math":
        pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    check, good = verifier(name), {"math": "18", "number": 18, "choice": "B"}[name]
    assert all(math.isnan(x) for x in check([()], [["1", "2"]], ["??"])[0])
    source = reward_function(check, on_error="skip")
    assert readable(source, {"answer": good}) and not readable(source, {"answer": "??"}) and not readable(source, {})
    assert source([()] * 2, [["1"], ["1"]], answer=[good, None]).failed.tolist() == [False, True]
    with pytest.raises(SourceError, match=f"verify:{name} failed"):
        reward_function(check)([()], [["1"]], answer=["??"])


BAD = {
    "maths": "verify:maths is unknown; did you mean verify:math?",
    "equal": "verify:equal is unknown; choose from math, number",
    "format": "verify:format needs a regular expression",
    "own": "needs --data reasoning-gym:NAME",
}


@pytest.mark.parametrize("name", BAD)
def test_a_verifier_that_does_not_exist_is_named(name):
    with pytest.raises(ValueError, match=r"^reward: ") as error:
        verifier(name)
    assert BAD[name] in str(error.value)


def test_a_missing_math_verify_is_named_before_anything_is_checked(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs the rewards extra, pip install 'pairgrpo-jax\[rewards\]'"
    ) as e:
        verifier("math")
    assert e.value.name == "math_verify"


def test_a_bad_regular_expression_is_named():
    with pytest.raises(ValueError, match=r"verify:format='\(' is no regular expression: missing \)"):
        verifier("format", "(")


def test_every_answer_of_gsm8k_is_read_and_its_own_solution_right(data_folder):
    pytest.importorskip("math_verify", reason="needs math-verify (extra: rewards)")
    folder = data_folder / "gsm8k"
    if not folder.is_dir():
        pytest.skip("PAIRGRPO_DATA has no gsm8k")
    rows = load_prompts(str(folder), split="all", prompt_column="question").rows
    answers = [row.columns["answer"] for row in rows]
    assert len(answers) == 8792 and all(true_number(x) is not None for x in answers)
    assert paid("number", [(x, x) for x in answers]) == [1.0] * len(answers)
    some = answers[::100]
    assert paid("math", [(f"So it is {x.split('####')[1]}.", x) for x in some]) == [1.0] * len(some)
