"""The loop of users' async functions: a client's open connection serves batch after batch, and nothing blocks it."""

import asyncio
import contextlib
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from chat_server import ChatServer, serving

from pairgrpo_jax.lm.rewards.sources import SourceError, judge, reward_function

PROMPTS = [({"role": "user", "content": "Hm?"},)]
COMPLETIONS = [["a", "bb", "cc", "d"]]


class Client:
    """Asks a server that says a line again, over one connection for ever, as a client with a pool does."""

    def __init__(self, port):
        self.port, self.lock, self.streams = port, asyncio.Lock(), None

    async def length(self, text):
        async with self.lock:
            self.streams = self.streams or await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(f"{text}\n".encode())
            await writer.drain()
            return len((await reader.readline()).strip())

    async def judge(self, prompt, a, b):
        return int(await self.length(b) > await self.length(a))

    async def rewards(self, prompts, completions):
        return [[await self.length(text) for text in group] for group in completions]


@pytest.fixture
def client():
    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with contextlib.suppress(ConnectionError):
                for line in self.rfile:
                    self.wfile.write(line)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Client(server.server_address[1])
        server.shutdown()


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("hidden", [False, True], ids=["async", "returns an awaitable"])
@pytest.mark.parametrize("kinds", ["judge", "rewards", "both"])
def test_a_connection_serves_batch_after_batch(client, kinds, hidden, timeout):
    judges = (lambda *x: client.judge(*x)) if hidden else client.judge
    rewards = (lambda *x: client.rewards(*x)) if hidden else client.rewards
    for _ in range(3):
        if kinds != "rewards":
            found = judge(judges, timeout=timeout)(PROMPTS, COMPLETIONS)
            np.testing.assert_array_equal(found.pairs.preferred, [[1, 2]])
        if kinds != "judge":
            found = reward_function(rewards, timeout=timeout)(PROMPTS, COMPLETIONS)
            np.testing.assert_array_equal(found.rewards, [[1, 2, 2, 1]])


def test_a_pool_of_httpx_serves_batch_after_batch():
    httpx = pytest.importorskip("httpx")
    pool = httpx.AsyncClient()

    async def asks(url, text):
        body = {"model": "m", "messages": [{"role": "user", "content": f"A: {text}\nB: b"}]}
        return "A" in (await pool.post(f"{url}/chat/completions", json=body)).json()["choices"][0]["message"]["content"]

    with serving(ChatServer()) as url:

        async def judges(prompt, a, b):
            return int(await asks(url, b))

        async def rewards(prompts, completions):
            return [[float(await asks(url, text)) for text in group] for group in completions]

        for _ in range(3):
            np.testing.assert_array_equal(judge(judges)(PROMPTS, COMPLETIONS).pairs.preferred, [[1, 2]])
            np.testing.assert_array_equal(reward_function(rewards)(PROMPTS, COMPLETIONS).rewards, [[0, 1, 1, 0]])


async def length(prompts, completions):
    return [[len(text) for text in group] for group in completions]


def test_a_loop_that_is_blocked_is_left_behind():
    async def blocks(prompt, a, b):
        time.sleep(4)

    async def longer(prompt, a, b):
        return int(len(b) > len(a))

    def inside():
        return reward_function(length)(PROMPTS, COMPLETIONS).rewards

    async def nested(prompts, completions):  # blocks its own loop
        return inside()

    assert judge(blocks, timeout=0.1, on_error="skip")(PROMPTS, COMPLETIONS).failed.all()
    found = judge(longer, timeout=0.5)(PROMPTS, COMPLETIONS)
    np.testing.assert_array_equal(found.pairs.preferred, [[1, 2]])
    np.testing.assert_array_equal(reward_function(nested)(PROMPTS, COMPLETIONS).rewards, inside())


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_is_not_waited_for_any_more_is_cancelled(interrupted):
    ended = threading.Event()

    async def hangs(prompts, completions):
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        if interrupted:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt if interrupted else SourceError):
            reward_function(hangs, timeout=None if interrupted else 0.05)(PROMPTS, COMPLETIONS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_function_may_end_the_program_and_not_the_loop(client, error):
    async def ends(prompts, completions):
        raise error("now")

    for _ in range(2):
        with pytest.raises(error, match="now"):
            reward_function(ends)(PROMPTS, COMPLETIONS)
        np.testing.assert_array_equal(reward_function(client.rewards)(PROMPTS, COMPLETIONS).rewards, [[1, 2, 2, 1]])


QUIET = """
import asyncio, os, time
from pairgrpo_jax.lm.rewards.loop import finish

async def one():
    global task, lock
    task = asyncio.ensure_future(asyncio.sleep(60))  # under way when the program ends
    return 1

print(finish(one(), None, time.monotonic()), flush=True)
child = os.fork()
print(finish(one(), 10, time.monotonic()), flush=True)
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_has_a_loop_of_its_own_and_the_end_is_quiet():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", QUIET], capture_output=True, text=True, timeout=120)
    assert (done.stdout.split(), done.stderr) == (["1", "1", "1", "0"], "")
