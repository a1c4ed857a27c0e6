"""The page that a run leaves."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from pairgrpo_jax.commands.plots import learning_curves
from pairgrpo_jax.commands.run_page import write_report

VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """The page's tags, which must close in order, its words, and everything that it would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.loads = [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.loads += [value for name, value in attrs if name in ("src", "href") and tag not in ("use", "a")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def folder(tmp_path):
    rows = [{"iteration": i, "steps": 10 * i, "reward": [i, i + 1.0], "kl": float("nan")} for i in range(1, 6)]
    rows[-1]["score"] = 0.5
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "config.json").write_text(json.dumps({"model": "<b>x</b>", "config": {"method": {"clip": 0.2}}}))
    (tmp_path / "versions.json").write_text(json.dumps({"python": "3.11"}))
    said = {"before": ["</td><script>alert(1)</script>", None], "after": ["a\n\n  caf\u00e9", 0.5]}
    kept = {"about": "cut at 8 tokens", "replies": [{"prompt": [{"role": "user", "content": "# Why?"}]} | said]}
    (tmp_path / "replies.json").write_text(json.dumps(kept), encoding="utf-8")
    (tmp_path / "cheetah.mp4").write_bytes(b"not a film")
    shown = {"score": "score", "reward": "reward in training", "kl": "KL", "missing": "nothing"}
    after = ["pairgrpo generate --model runs/x"]
    write_report(
        tmp_path,
        "hard & <soft>",
        ["win rate 50%"],
        shown,
        axis="batches",
        command="pairgrpo align soft --x",
        after=after,
    )
    return tmp_path


def test_it_holds_all_and_needs_nothing_else(folder):
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    for words in ("hard & <soft>", "win rate 50%", "config.method.clip", "0.2", "<b>x</b>", "3.11", "caf\u00e9"):
        assert words in page.words
    assert "The same run again: pairgrpo align soft --x" in page.words
    assert "reward in training" in page.words and "batches" in page.words and "nothing" not in page.words
    assert "KL" not in page.words, "it was never a number"
    assert "pairgrpo generate --model runs/x" in page.words and "</td><script>" in page.words
    assert "user# Why?" in page.words and "after, reward 0.50a\n\n  caf" in page.words and "cut at 8" in page.words
    assert "script" not in page.tags and {"svg", "video", "table"} <= {*page.tags}
    assert len(page.loads) == 1 and page.loads[0].startswith("data:video/mp4;base64,")


def test_a_run_without_a_film_or_replies_has_a_page_too(folder):
    (folder / "cheetah.mp4").unlink()
    (folder / "replies.json").unlink()
    write_report(folder, "x", [], {"none": "none"}, axis="batches", command=None, after=[])
    page = Page((folder / "report.html").read_text())
    assert "same run again" not in page.words
    assert "video" not in page.tags and "Replies" not in page.words and "svg" in page.tags


def test_curves_of_a_run_whose_folder_was_lost(tmp_path):
    """Its first row is an evaluation alone."""
    alone = {"iteration": 4, "steps": 40, "seconds": 0.0, "score": 1.0}
    row = {"iteration": 5, "steps": 50, "return": [1.0, 2.0], "realised_kl": [0.1, 0.2], "std": [1.0, 1.0]}
    for rows in ([alone], [alone, row]):
        learning_curves(rows, tmp_path / "curve.png", "x", "#0072B2")
        assert (tmp_path / "curve.png").stat().st_size > 1000
        (tmp_path / "curve.png").unlink()


def test_a_browser_shows_it(folder):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser here (apt-get install chromium)")
    from PIL import Image

    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,900", "--screenshot=page.png"]
    words.append(f"file://{folder}/report.html")
    subprocess.run(words, cwd=folder, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(folder / "page.png").convert("RGB"), int)
    blue = (np.abs(pixels - [0, 114, 178]).sum(-1) < 60).sum()  # the curves' colour
    dark = (pixels.sum(-1) < 200).sum()  # words
    assert blue > 100 and dark > 1000
