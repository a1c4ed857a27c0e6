"""A small HTTP server that speaks the chat completions protocol, and can be made to misbehave."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


class ChatServer:
    """Prefers the longer reply; `plan` says what it does instead: a list, one for each request, the last for the rest.

    "good"; a status code, or `(429, seconds)` with Retry-After; "garbage" (no verdict), "not json", "empty" (no
    choices), "slow" (a second), "drip" (two, a byte at a time), "hang up", or `lambda body: verdict`.
    """

    def __init__(self, *plan, echo=False):
        self.plan, self.echo, self.requests, self.lock, self.now, self.most = (
            plan or ("good",),
            echo,
            [],
            threading.Lock(),
            0,
            0,
        )

    def next(self, body, headers):
        with self.lock:
            number = len(self.requests)
            self.requests.append({"body": body, "authorization": headers.get("Authorization")})
            return self.plan[min(number, len(self.plan) - 1)]

    @property
    def questions(self):
        return [request["body"]["messages"][-1]["content"] for request in self.requests]


def replies(body):
    """The two replies of a question by the default rubric, or by lines `A: ...` and `B: ...`."""
    text = body["messages"][-1]["content"]
    found = re.search(r"<reply_A>\n(.*)\n</reply_A>\n\n<reply_B>\n(.*)\n</reply_B>", text, re.DOTALL)
    return found.groups() if found else re.search(r"^A: (.*)\nB: (.*)$", text, re.MULTILINE).groups()


def longer(body):
    a, b = replies(body)
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.server.state
        what = state.next(body, self.headers)
        with state.lock:
            state.now += 1
            state.most = max(state.most, state.now)
        try:
            self.react(what, body, state)
        finally:
            with state.lock:
                state.now -= 1

    def react(self, what, body, state):
        if what == "hang up":
            self.close_connection = True
            return self.connection.close()
        if isinstance(what, (int, tuple)):
            code, wait = what if isinstance(what, tuple) else (what, None)
            said = f"no: {self.headers['Authorization']}" if state.echo else "no"
            return self.send({"error": {"message": said}}, code, {} if wait is None else {"Retry-After": str(wait)})
        if what == "slow":
            time.sleep(1)
        if what == "drip":
            return self.drip()
        if what == "not json":
            return self.send(b"<html>", 200)
        if what == "empty":
            return self.send({"id": "1", "object": "chat.completion", "choices": []}, 200)
        content = json.dumps({"verdict": what(body) if callable(what) else longer(body)})
        if what == "garbage":
            content = f"I cannot say, {self.headers['Authorization']}" if state.echo else "I cannot say."
        message = {"role": "assistant", "content": content}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        about = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        self.send(about | {"choices": [choice], "usage": usage}, 200)

    def drip(self):
        """A body that comes for two seconds, a space at a time, and ends unread by whoever has left."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "20")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                self.wfile.write(b" ")
                time.sleep(0.1)

    def send(self, content, code, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serving(state: ChatServer, port: int = 0):
    """Serves on 127.0.0.1; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads, server.state = True, state
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
