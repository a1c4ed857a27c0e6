"""The documentation: links lead somewhere, listings run, commands are what the parsers take, pictures are current."""

import importlib
import inspect
import itertools
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import tyro
from markdown_it import MarkdownIt

from pairgrpo_jax.commands import compiled, main
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.commands.words import take
from pairgrpo_jax.methods import METHODS
from pairgrpo_jax.training import processes

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if not page.is_symlink())
MARKDOWN = MarkdownIt("commonmark").enable("table")


def test_a_page_of_the_root_is_the_same_page_on_the_site():
    """An editor that writes a new file in place of the link leaves a copy that grows old."""
    twice = [page for page in ROOT.glob("docs/*.md") if (ROOT / page.name).exists()]
    assert twice and all(page.is_symlink() and page.samefile(ROOT / page.name) for page in twice)


def name(page):
    return str(page.relative_to(ROOT))


def fences(page, language):
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info.split()[:1] == [language]]


def inline(page):
    """Every token inside of the page's paragraphs, headings and tables."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    return [child for token in tokens for child in token.children or ()]


def anchors(page):
    """The ids of its headings, which GitHub and the site make alike for our headings."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    titles = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def dead_links(page):
    found = []
    for token in inline(page):
        target = token.attrGet("href" if token.type == "link_open" else "src")
        if not target or re.match(r"[a-z]+:", str(target)):
            continue
        path, _, anchor = str(target).partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_link_is_dead(page):
    assert not dead_links(page)


def test_a_dead_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#three) [c](none.md) ![d](none.png) `[e](f)` [g](page.md#one-two)\n")
    assert dead_links(page) == ["#three", "none.md", "none.png"]


def test_every_page_is_in_the_navigation_and_every_module_of_the_reference_exists():
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    table = r"(compare|tune)(-at-\d+)?\.md"  # experiments make them
    pages = {page for page in (ROOT / "docs").rglob("*.md") if not re.fullmatch(table, page.name)}
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in pages}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for module in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    told = (ROOT / "docs" / "reference" / "methods.md").read_text()
    assert [x for x in METHODS if f"::: {x.__module__}\n" not in told] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# Listings


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder where SmolLM2 and the reward heads are tiny ones of the same names."""
    monkeypatch.chdir(tmp_path)
    lm = pytest.importorskip("pairgrpo_jax.lm", reason="needs the extra lm")
    import jax
    from byte_model import write_model

    from pairgrpo_jax.lm.rewards import reward_model

    write_model(tmp_path / "tiny")
    load = lm.load_model
    head = reward_model.RewardHead(
        jax.random.normal(jax.random.key(1), (32,)), jax.numpy.zeros(()), reward_model.DEFAULT
    )
    monkeypatch.setattr(lm, "load_model", lambda name, **how: load("tiny" if name == "smollm2" else name, **how))
    monkeypatch.setattr(reward_model, "load_head", lambda name: head)
    return tmp_path


def run(page, monkeypatch):
    """A page's listings in a module of their own, one after another, as a reader would enter them."""
    module = types.ModuleType(f"listings_of_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for text in fences(page, "python"):
        exec(compile(text, name(page), "exec"), module.__dict__)
    return module


def test_listings_on_own_code_learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = run(ROOT / "docs" / "own-code.md", monkeypatch)
    reward = np.asarray(module.curves["reward"])
    assert reward.shape == (5, 50) and (reward[:, -5:].mean(1) > reward[:, :5].mean(1) + 0.3).all()
    assert module.step == 10 and int(module.nnx_state.step) == 1 and np.isfinite(module.metrics["surrogate"])
    assert (np.asarray(module.batch["pairs"].weight) == 1).any()
    assert module.read_metrics("runs/mine")[-1]["iteration"] == 3


@pytest.mark.parametrize("page", ["index", "models", "alignment", "trackers"])
def test_listings_run(page, workplace, monkeypatch, capsys):
    module = run(ROOT / "docs" / f"{page}.md", monkeypatch)
    found = vars(module)
    if page == "models":
        assert np.isfinite(found["scores"].logp).all() and (workplace / "copy" / "config.json").exists()
        np.testing.assert_allclose(found["scores"].logp, found["out"].logp, atol=1e-4)
    if page == "alignment":
        assert np.isfinite(found["metrics"]["reward"]).all()
    if page == "trackers":
        assert capsys.readouterr().out == "best 0.75, last 0.5\n"
    if page == "index":
        assert np.isfinite(found["loss"])


def test_no_page_has_listings_that_nobody_runs():
    run_here = {"index", "own-code", "models", "alignment", "trackers"}
    run_by_test_contributing = {"README", "CONTRIBUTING", "methods", "rewards"}
    assert {page.stem for page in PAGES if fences(page, "python")} == run_here | run_by_test_contributing


# Commands


class Parsed(Exception):
    """The words were taken."""


def commands(page):
    """The command lines of a page, in blocks and between backticks, that have no placeholder of another kind."""
    lines = [line.partition("  #")[0] for text in fences(page, "bash") for line in text.splitlines()]
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    lines += [line for token in tokens if token.type == "code_block" for line in token.content.splitlines()]
    lines += [token.content for token in inline(page) if token.type == "code_inline"]
    starts = ("pairgrpo ", "python -m experiments", "python -m pytest", "make ", "pip install ")
    lines = [re.sub(r"^(\w+=\S+ )+", "", line).partition("  #")[0].strip() for line in lines]
    return [
        x
        for x in dict.fromkeys(lines)
        if x.startswith(starts) and not re.search(r"METHOD|COMMAND|\.\.\.|NAME|lopsided", x)
    ]


def check(line, monkeypatch):
    """Parsed where the program's own parser takes the words; pytest, make and pip are looked up in what they read."""
    program, *words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {*words} <= {*targets}, line
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = {x for found in re.findall(r"\[([\w,]+)\]", line) for x in found.split(",")}
        assert extras <= {*project["optional-dependencies"]}, line
    elif words[:2] == ["-m", "pytest"]:
        paths = [word for word in words if word.startswith("tests/")]
        assert paths and all((ROOT / path.partition("::")[0]).exists() for path in paths), line
    else:
        enter(program, words, monkeypatch)
        return
    raise Parsed


def enter(program, words, monkeypatch):
    """Runs a program up to where its words are understood."""
    real = tyro.cli

    def taken(*args, **kwargs):
        found = real(*args, **kwargs)
        value, unknown = found if kwargs.get("return_unknown_args") else (found, [])
        if unknown or isinstance(value, processes.Start):  # how processes find each other; the run's own words follow
            return found
        raise Parsed

    monkeypatch.setattr(tyro, "cli", taken)
    monkeypatch.setattr(processes, "start", lambda how: None)
    # This process goes on with the cache that all tests share.
    monkeypatch.setattr(compiled, "keep_compiled", lambda words: take(words, (compiled.OPTION,))[1])
    if program == "pairgrpo":
        monkeypatch.setattr(sys, "argv", [program, *words])
        main.main()
        raise Parsed  # --help and --version
    monkeypatch.setattr(sys, "argv", words[1:])
    module = importlib.import_module(words[1])
    if not hasattr(module, "main"):
        assert not words[2:], f"{words[1]} takes no words"
        raise Parsed
    run_main((lambda: tyro.cli(module.Command)) if inspect.signature(module.main).parameters else module.main)


WITH_COMMANDS = [page for page in PAGES if commands(page) and page.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name)
def test_commands_are_understood(page, monkeypatch, capsys):
    for line in commands(page):
        with pytest.raises((Parsed, SystemExit)) as end, monkeypatch.context() as patches:
            check(line, patches)
        assert end.type is Parsed or end.value.code in (None, 0), f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize(
    "line",
    [
        "pairgrpo align sfot",
        "pairgrpo cheetah hard --clip 0.1",
        "pairgrpo theroy",
        "python -m experiments.compare --sedes 2",
    ],
)
def test_a_wrong_command_would_be_found(line, monkeypatch):
    with pytest.raises(SystemExit) as end:
        check(line, monkeypatch)
    assert end.value.code == 2


def test_a_target_an_extra_and_a_file_that_are_not_there_would_be_found(monkeypatch):
    for line in ("make dosc", "pip install '.[lmm]'", "python -m pytest tests/lm/test_nothing.py"):
        with pytest.raises(AssertionError):
            check(line, monkeypatch)


def test_the_pictures_of_the_methods_are_what_is_drawn(tmp_path):
    from experiments.method_pictures import draw

    draw(tmp_path)
    for path in sorted((ROOT / "docs" / "methods").iterdir()):
        np.testing.assert_allclose(drawn(path), drawn(tmp_path / path.name), atol=0.5)


def drawn(path):
    """The coordinates of a picture's lines."""
    shapes = re.findall(r" d=\"([^\"]+)\"", path.read_text())
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", " ".join(shapes))]
