"""A loopback Kubeflow Pipelines backend that records what it is asked."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Says nothing where a client did not wait for the answer."""


class Backend:
    """Answers as KFP 2 does; ``faults`` come first, one a request."""

    SILENCE = object()  # no answer before the client gives up

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.pipelines: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.experiments: dict[str, str] = {}
        # Identifier to name: unlike the others, these may share one.
        self.recurring: dict[str, str] = {}
        self.tag = "2.5.0"
        self.run_states: list[dict[str, Any]] = []
        # Status code, code and body, SILENCE or "hang up", by request; None answers.
        self.faults: list[Any] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def _handle(self):
                length = int(self.headers.get("Content-Length") or 0)
                parts = urllib.parse.urlsplit(self.path)
                request = Request(
                    self.command,
                    parts.path,
                    dict(urllib.parse.parse_qsl(parts.query)),
                    dict(self.headers),
                    self.rfile.read(length),
                )
                outer.requests.append(request)
                fault = outer.faults.pop(0) if outer.faults else None
                if fault is outer.SILENCE:
                    self.connection.recv(1)  # until the client gives up
                if fault is outer.SILENCE or fault == "hang up":
                    self.close_connection = True
                    return
                if isinstance(fault, int):
                    fault = fault, {"message": f"fault {fault}"}
                status, answer = fault or outer.answer(request)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _handle  # noqa: N815

            def log_message(self, *args):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> tuple[int, Any]:
        path = request.path.removeprefix("/apis/v2beta1")
        reading = request.method == "GET"
        if path == "/healthz":
            # apiserver/main.go: what the image was built as.
            return 200, {"commit_sha": "unknown", "tag_name": self.tag, "multi_user": False}
        if path == "/pipelines":
            if reading:
                return self._named(request, "pipelines", self.pipelines.items())
            self.pipelines[request.json["display_name"]] = "p-1"
            return 200, {"pipeline_id": "p-1"}
        if path == "/pipelines/p-1/versions":
            return self._named(request, "pipeline_versions", self.versions.items())
        if path == "/pipelines/upload_version":
            if request.query["name"] in self.versions:
                # storage/pipeline_store.go: a name is there once in a pipeline.
                return 409, {"error_message": "Failed to create a pipeline version"}
            self.versions[request.query["name"]] = version = f"v-{len(self.versions) + 1}"
            return 200, {"pipeline_version_id": version}
        if path == "/experiments":
            if reading:
                return self._named(request, "experiments", self.experiments.items())
            self.experiments[request.json["display_name"]] = "e-1"
            return 200, {"experiment_id": "e-1"}
        if path == "/runs":
            return 200, {"run_id": "r-1"}
        if path == "/recurringruns":
            if reading:
                names = [(name, made) for made, name in self.recurring.items()]
                return self._named(request, "recurringRuns", names)
            made = f"rr-{len(self.posts('/recurringruns'))}"
            self.recurring[made] = request.json["display_name"]
            # apiserver/template/v2_template.go: before 2.17 the account asked for is not heeded.
            account = request.json.get("service_account", "pipeline-runner")
            if tuple(map(int, self.tag.split(".")[:2])) < (2, 17):
                account = "pipeline-runner"
            return 200, {"recurring_run_id": made, "service_account": account}
        if path.startswith("/recurringruns/") and request.method == "DELETE":
            del self.recurring[path.rpartition("/")[2]]
            return 200, {}
        if path.endswith(":terminate"):
            return 200, {}
        if path.startswith("/runs/"):
            if path != "/runs/r-1":
                return 404, {"message": "Run not found"}
            state = self.run_states.pop(0) if len(self.run_states) > 1 else self.run_states[0]
            return 200, state
        return 404, {"message": "no such method"}

    @staticmethod
    def _named(request: Request, kind: str, known: Iterable[tuple[str, str]]) -> tuple[int, Any]:
        """What is called as the request's filter says, and its identifier."""
        wanted = json.loads(request.query["filter"])["predicates"][0]["string_value"]
        key = "recurring_run_id" if kind == "recurringRuns" else f"{kind[:-1]}_id"
        hits = [{"display_name": name, key: i} for name, i in known if name == wanted]
        return 200, {kind: hits} if hits else {}

    def posts(self, end: str) -> list[Request]:
        return [r for r in self.requests if r.method == "POST" and r.path.endswith(end)]
