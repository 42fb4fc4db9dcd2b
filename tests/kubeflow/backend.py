"""A loopback Kubeflow Pipelines backend that records what it is asked."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import time
import urllib.parse
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


class Backend:
    """Answers as KFP 2 does; ``faults`` come first, one a request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.pipelines: dict[str, str] = {}
        self.versions: list[str] = []
        self.experiments: dict[str, str] = {}
        self.run_states: list[dict[str, Any]] = []
        # Status code, or seconds to keep silent, by request; None answers.
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
                if isinstance(fault, float):
                    time.sleep(fault)
                status, answer = (
                    (fault, {"message": f"fault {fault}"})
                    if isinstance(fault, int)
                    else outer.answer(request)
                )
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _handle  # noqa: N815

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> tuple[int, Any]:
        path = request.path.removeprefix("/apis/v2beta1")
        if request.method == "GET" and path in ("/pipelines", "/experiments"):
            kind = path[1:]
            wanted = json.loads(request.query["filter"])["predicates"][0]["string_value"]
            known = self.pipelines if kind == "pipelines" else self.experiments
            key = kind[:-1] + "_id"
            hits = [{"display_name": n, key: i} for n, i in known.items() if n == wanted]
            return 200, {kind: hits} if hits else {}
        if path.startswith("/pipelines/") and path.endswith("/versions"):
            return 200, {"pipeline_versions": [{"pipeline_version_id": self.versions[-1]}]}
        if path == "/pipelines/upload":
            self.pipelines[request.query["name"]] = "p-1"
            self.versions.append("v-1")
            return 200, {"pipeline_id": "p-1"}
        if path == "/pipelines/upload_version":
            self.versions.append(f"v-{len(self.versions) + 1}")
            return 200, {"pipeline_version_id": self.versions[-1]}
        if path == "/experiments":
            self.experiments[request.json["display_name"]] = "e-1"
            return 200, {"experiment_id": "e-1"}
        if path == "/runs":
            return 200, {"run_id": "r-1"}
        if path == "/recurringruns":
            return 200, {"recurring_run_id": "rr-1"}
        if path.endswith(":terminate"):
            return 200, {}
        if path.startswith("/runs/"):
            if path != "/runs/r-1":
                return 404, {"message": "Run not found"}
            state = self.run_states.pop(0) if len(self.run_states) > 1 else self.run_states[0]
            return 200, state
        return 404, {"message": "no such method"}

    def posts(self, end: str) -> list[Request]:
        return [r for r in self.requests if r.method == "POST" and r.path.endswith(end)]
