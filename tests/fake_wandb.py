"""A server that says to W&B's client what it needs to hear to begin a run, until it is switched off."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    """Remembers its connections: closing the server alone would leave them answered."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, *arguments: Any) -> None:
        """A connection that was cut off."""


class FakeWandb:
    """Keeps what it was asked.

    Attributes:
        url: for ``WANDB_BASE_URL``.
        asked: names of GraphQL operations, and other paths.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._answers, self._ended = threading.Event(), threading.Event()
        self._answers.set()
        self._server = _Server(("127.0.0.1", 0), _handler(self.asked, self._wait))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def hang(self) -> None:
        """It accepts what it is asked, and does not answer any more."""
        self._answers.clear()

    def _wait(self) -> bool:
        """Until there is to be an answer; false if there will be none."""
        while not self._answers.wait(0.2):
            if self._ended.is_set():
                return False
        return True

    def vanish(self) -> None:
        """Nothing answers at the address any more."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fake_wandb() -> Iterator[FakeWandb]:
    server = FakeWandb()
    try:
        yield server
    finally:
        server.vanish()


def _answer(operation: str, given: dict[str, Any]) -> dict[str, Any]:
    entity = {"id": "e", "name": "me"}
    if operation == "UpsertBucket":
        project = {"id": "p", "name": given.get("project"), "entity": entity}
        bucket = {
            "id": "UnVuOg==",
            "name": given.get("name"),
            "displayName": "run",
            "config": "{}",
            "historyLineCount": 0,
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if operation == "CreateRunFiles":
        return {"createRunFiles": {"runID": "UnVuOg==", "uploadHeaders": [], "files": []}}
    if operation == "Viewer":
        return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}
    return {}


def _handler(asked: list[str], wait: Callable[[], bool]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Each request would be a line on stderr."""

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.path.endswith("/graphql"):
                asked.append(self.path)
                self._reply({})
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            asked.append(found.group(1) if found else "?")
            self._reply({"data": _answer(asked[-1], request.get("variables") or {})})

        def _reply(self, value: dict[str, Any]) -> None:
            if not wait():
                return
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
