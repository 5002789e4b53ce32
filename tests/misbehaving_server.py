"""A server of OpenAI's chat protocol on this machine that fails as it is told to.

What happens to an attempt is the next word of the script of its content (the text of its last
message); a content without a script, or at its end, is answered. Everything is written down.
"""

import email.utils
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
SAID = "a small red house with a green door stands between two old trees on a hill by the sea"
CHARGED = ("ok", "hang", "half", "not JSON", "wrong schema", "no usage")  # the model has worked


def reply(text: object = SAID, finish: str = "stop", usage: object = USAGE, **fields) -> dict:
    """A whole answer of the protocol."""
    message = {"role": "assistant", "content": text} | fields
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


class Server(ThreadingHTTPServer):
    """``scripts``: content to words; ``attempts``, ``delivered``: what happened to each content."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.scripts: dict[str, list] = {}
        self.attempts: dict[str, list[str]] = defaultdict(list)
        self.requests: list[dict] = []
        self.headers: list[dict] = []
        self.lock, self.release, self.most = threading.Lock(), threading.Event(), 0
        self.flying = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def delivered(self, content: str) -> int:
        return sum(word in ("ok", "no usage") for word in self.attempts[content])

    def charged(self, *contents: str) -> int:
        """Attempts at contents that a model has worked for."""
        return sum(word in CHARGED for content in contents for word in self.attempts[content])

    def handle_error(self, request, client_address) -> None:
        pass  # a client that no longer listens

    def close(self) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        if not isinstance(content, str):
            content = next(part["text"] for part in content if part["type"] == "text")
        with server.lock:
            server.requests.append(body)
            server.headers.append({k.lower(): v for k, v in self.headers.items()})
            script = server.scripts.get(content, [])
            word = script.pop(0) if script else "ok"
            name = word if isinstance(word, str) else "ok"
            server.attempts[content].append(name)
            server.flying += 1
            server.most = max(server.most, server.flying)
        try:
            self.act(word)
        finally:
            with server.lock:
                server.flying -= 1

    def act(self, word: object) -> None:
        if not isinstance(word, str):
            return word(self) if callable(word) else self.send(200, json.dumps(word))
        kind, _, value = word.partition(" ")
        if word in ("ok", "no usage"):
            self.send(200, json.dumps(reply(usage=USAGE if word == "ok" else None)))
        elif kind == "after":
            self.send(429, '{"error": {"message": "slow down"}}', {"Retry-After": value})
        elif kind == "date":
            when = email.utils.formatdate(time.time() + float(value), usegmt=True)
            self.send(429, '{"error": {"message": "slow down"}}', {"Retry-After": when})
        elif word == "hang":
            self.server.release.wait(20)
            self.close_connection = True
        elif word == "half":
            self.send(200, json.dumps(reply()), cut=True)
        elif word == "not JSON":
            self.send(200, "<html>busy</html>")
        elif word == "wrong schema":
            self.send(200, '{"choices": [], "usage": null}')
        else:
            self.send(int(word), '{"error": {"message": "no", "code": null}}')

    def send(self, status: int, text: str, headers: dict = {}, cut: bool = False) -> None:  # noqa: B006
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut
