#!/usr/bin/env bash
# openai's timeout does not end a question while the server sends blank lines, as servers do that queue or think.
# Guess: OpenAI(timeout=2, max_retries=0) and a plain, not streamed chat completion: after two seconds there is an answer or APITimeoutError.
#   A number of seconds is the time of a call; between pieces it could only matter for stream=True.
# Truth (openai 3.57.0, httpx2 2.16.2): it is the longest silence: connecting, writing and each read have two seconds of their own. White space
#   before the JSON is a read, and harmless to the parser, so one blank line every quarter of a second holds the call for as long as the
#   server likes, and the answer is then returned as if in time. httpx2.Timeout(2) is no different.
#   A silent server is left after 2 s as guessed (each of the retries, 2 by default, has as long again).
# Who: judges behind OpenAI-compatible servers that send such lines for unstreamed requests (DeepSeek's queue, oMLX and others, so that
#   proxies keep the line open): one overloaded server stops a whole group's rewards, whatever the timeout. A deadline needs
#   a clock of one's own: asyncio.wait_for round AsyncOpenAI, as below, or a thread that is waited for.
# Known: openai-python issue 2599 (closed), omlx issue 3580 (a server's side of it).
# Seen: timeout 2 s: a silent server, APITimeoutError after 2 s; blank lines for 8 s, the answer after 8 s; with wait_for(2), 2 s.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/v"
"$tmp/v/bin/pip" install -q openai==3.57.0 httpx2==2.16.2
cd "$tmp"; env -u HTTP_PROXY -u http_proxy -u ALL_PROXY -u all_proxy "$tmp/v/bin/python" - <<'EOP'
import asyncio, json, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import httpx2, openai
print("openai", openai.__version__, "httpx2", httpx2.__version__)
choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "A"}}
reply = {"id": "0", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
BUSY, WAIT = 8, 2  # seconds until the server has its answer, and the timeout

class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        chunk = lambda data: self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        try:
            for _ in range(4 * BUSY):
                time.sleep(1 / 4)
                if "blank" in self.path:
                    chunk(b"\n")
            chunk(json.dumps(reply).encode())
            chunk(b"")
        except OSError:  # the client has left
            self.close_connection = True
    def log_message(self, *_): pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
question = {"model": "judge", "messages": [{"role": "user", "content": "Which is better?"}]}
def how(kind, timeout=WAIT): return dict(base_url=f"http://127.0.0.1:{server.server_port}/{kind}", api_key="none", max_retries=0, timeout=timeout)

def asked(name, ask):
    """What came of a question, and after how many seconds."""
    start = time.monotonic()
    try:
        came = ask().choices[0].message.content
    except Exception as error:
        came = type(error).__name__
    took = time.monotonic() - start
    print(f"{name:40s} {came} after {took:.1f} s")
    return came, took

async def within(seconds):
    async with openai.AsyncOpenAI(**how("blank")) as client:
        return await asyncio.wait_for(client.chat.completions.create(**question), seconds)

came, took = asked(f"timeout={WAIT}, silent", lambda: openai.OpenAI(**how("silent")).chat.completions.create(**question))
assert came == "APITimeoutError" and took < BUSY - 2
for name, timeout in ((f"timeout={WAIT}", WAIT), (f"httpx2.Timeout({WAIT})", httpx2.Timeout(WAIT))):
    came, took = asked(f"{name}, blank lines", lambda: openai.OpenAI(**how("blank", timeout)).chat.completions.create(**question))
    assert came == "A" and took >= BUSY
came, took = asked(f"timeout={WAIT} in wait_for({WAIT}), blank lines", lambda: asyncio.run(within(WAIT)))
assert came == "TimeoutError" and took < BUSY - 2
EOP
