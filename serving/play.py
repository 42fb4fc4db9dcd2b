"""A page to try a model on: what it asks for, and a small proxy that answers it.

The page (``play.html``) speaks TensorFlow Serving's REST API, so that the
stand-in server answers most of it as it is. :class:`Page` answers the rest; a
:class:`Proxy` all of it, for any server, through the project's own client.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import pathlib
import sys
import threading
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serving import contract, errors, wire
from serving.standin import json_form
from serving.standin.status import StatusError

if TYPE_CHECKING:
    from serving.client import ReconstructionClient
    from serving.uses.neighbours import HalfWhitening

# Given a model's name and a version: the Parquet files of its image index, none where it has none.
IndexOf = Callable[[str, int], Sequence[str]]

_NEIGHBOURS = 8
# Of a request: a drawing is 3 kB, the longest code 30.
_MAX_BYTES = 2**20
_HERE = ("127.0.0.1", "localhost")
# The calls that are passed on.
_CALLS = frozenset(
    (contract.RECONSTRUCT, contract.SCORE, contract.ENCODE, contract.DECODE, contract.GENERATE,
     contract.CLASSIFY)
)  # fmt: skip


class Served(NamedTuple):
    """What answers for a model: the version, and its signatures' inputs by signature."""

    version: int
    signatures: Mapping[str, Sequence[str]]


class Answer(NamedTuple):
    """What goes back over HTTP."""

    status: int
    kind: str
    body: str


class Page:
    """The page, which models there are, and the neighbours of a code.

    Args:
      describe: The models that answer now, by name.
      index_of: Where their image indices are.
    """

    def __init__(
        self, describe: Callable[[], Mapping[str, Served]], index_of: IndexOf | None = None
    ) -> None:
        self._describe = describe
        self._index_of = index_of or (lambda name, version: ())
        self._index = functools.lru_cache(maxsize=2)(self._read_index)

    def answer(self, method: str, path: str, body: bytes) -> Answer | None:
        """Answers a request; None where it is not the page's."""
        path = path.partition("?")[0]
        try:
            if path == "/" and method in ("GET", "HEAD"):
                text = pathlib.Path(__file__).with_name("play.html").read_text(encoding="utf-8")
                return Answer(200, "text/html; charset=utf-8", text)
            if path == "/play/models" and method == "GET":
                found = {name: served._asdict() for name, served in self._describe().items()}
                return _json({"models": found})
            if path == "/play/neighbours" and method == "POST":
                return _json({"neighbours": self._neighbours(json_form.parse(body))})
        except errors.Error as error:
            return _refusal(error)
        return None

    def _neighbours(self, asked: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """Of a code the nearest training images, nearest first; None without an index."""
        from serving.uses.columns import IMAGE, LABEL
        from serving.uses.neighbours import nearest

        name, code = asked.get("model"), _code(asked.get("code"))
        served = self._describe().get(name) if isinstance(name, str) else None
        found = self._index(name, served.version) if served else None
        if found is None or code.shape != found[0][contract.CODE].shape[1:]:
            return None
        index, whiten, codes = found
        rows, distances = nearest(codes, whiten(code[np.newaxis]), _NEIGHBOURS)
        return [
            {
                "image": index[IMAGE][row].ravel().tolist(),
                "label": int(index[LABEL][row]),
                "distance": float(distance),
            }
            for row, distance in zip(rows[0], distances[0])
        ]

    def _read_index(
        self, name: str, version: int
    ) -> tuple[dict[str, np.ndarray], HalfWhitening, np.ndarray] | None:
        """An index, how its codes are compared, and its codes made ready for that."""
        from serving.uses.columns import IMAGE, LABEL, read_columns
        from serving.uses.neighbours import HalfWhitening

        paths = self._index_of(name, version)
        if not paths:
            return None
        index = read_columns(paths, (IMAGE, LABEL, contract.CODE))
        whiten = HalfWhitening([index[contract.CODE]])
        return index, whiten, whiten(index[contract.CODE])


class Proxy(http.server.ThreadingHTTPServer):
    """The page of one model on this machine; what it asks goes on through a client.

    Usable as a context manager: answers when entered.

    Args:
      port: 0 is any free one.

    Raises:
      InputError: The port cannot be had.
      ServingError: The client's server does not answer, or has no such model.
    """

    daemon_threads = True

    def __init__(
        self, client: ReconstructionClient, port: int, index_of: IndexOf | None = None
    ) -> None:
        self._client = client
        self._page = Page(self._describe, index_of)
        self._describe()
        try:
            super().__init__((_HERE[0], port), _Handler)
        except OSError as error:
            raise errors.InputError(
                f"cannot listen on {_HERE[0]}:{port}: {error.strerror}; choose another with --port"
            ) from None

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_HERE[0]}:{self.server_port}/"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self.serve_forever, name="play", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, address: Any) -> None:
        """Says nothing of a browser that has gone."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, address)

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Answers one request."""
        answer = self._page.answer(method, path, body)
        if answer is not None:
            return answer
        if (
            method == "POST"
            and urllib.parse.unquote(path) == f"/v1/models/{self._client.model}:predict"
        ):
            try:
                return Answer(200, "application/json", self._predict(body))
            except errors.Error as error:
                return _refusal(error)
        return _json({"error": f"there is nothing at {path[:200]}"}, 404)

    def _describe(self) -> dict[str, Served]:
        # As the page has them, which asks again and again; a drawing waits for one request less.
        self._signatures = self._client.metadata()
        inputs = {name: sorted(info.inputs) for name, info in self._signatures.items()}
        return {self._client.model: Served(self._client.answering(), inputs)}

    def _predict(self, body: bytes) -> str:
        document = json_form.parse(body)
        name = json_form.signature_name(document)
        signature = self._signatures.get(name) if name in _CALLS else None
        if signature is None:
            raise errors.InputError(f"the page has no call of {name!r}")
        types = {alias: wire.named_type(spec.dtype) for alias, spec in signature.inputs.items()}
        inputs, by_row = json_form.to_inputs(document, types)
        outputs = tuple(signature.outputs)
        found = self._client.call(name, inputs, outputs)
        return json_form.from_outputs({alias: found[alias] for alias in outputs}, by_row)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    server: Proxy

    def _get(self) -> None:
        self._respond(self._answer(b""))

    def _post(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal() and len(length) < 10 and int(length) <= _MAX_BYTES:
            self._respond(self._answer(self.rfile.read(int(length))))
        else:
            self.close_connection = True
            self._respond(_json({"error": f"a body has 0 to {_MAX_BYTES} bytes"}, 413))

    do_GET = do_HEAD = _get  # noqa: N815
    do_POST = _post  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: what goes wrong is told on the page."""

    def _answer(self, body: bytes) -> Answer:
        # Another site's name that leads here is no way in.
        with contextlib.suppress(ValueError):
            if urllib.parse.urlsplit(f"//{self.headers.get('Host')}").hostname in _HERE:
                return self.server.answer(self.command, self.path, body)
        return _json({"error": f"the page is at {self.server.url}"}, 403)

    def _respond(self, answer: Answer) -> None:
        payload = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


def _refusal(error: errors.Error) -> Answer:
    """The answer that says what went wrong: 400 where it was asked badly, else 502."""
    badly = error.exit_code == 2 or isinstance(error, StatusError | errors.InvalidRequestError)
    return _json({"error": " ".join(str(error).split())}, 400 if badly else 502)


def _json(document: Any, status: int = 200) -> Answer:
    return Answer(status, "application/json", json.dumps(document))


def _code(value: Any) -> np.ndarray:
    with contextlib.suppress(ValueError, TypeError):
        code = np.array(value, np.float32)
        if np.isfinite(code).all():
            return code
    raise errors.InputError("the code is no array of numbers")
