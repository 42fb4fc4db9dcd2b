"""A served model by TensorFlow Serving's REST API: slower than gRPC, passes HTTP proxies."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import queue
import random
import ssl
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving import errors, protos
from serving.transport import Address, Arrays, Transport, VersionStatus, statuses_of, translate

# Codes that say that the server did not begin; REST knows no CANCELLED.
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_FIRST_PAUSE = 0.05
_HTTP_CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestTransport(Transport):
    """TensorFlow Serving's REST API. Usable from many threads."""

    def __init__(self, address: Address) -> None:
        self.address = address
        # Connections that nobody is using: as many as calls were ever under way at once.
        self._idle: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        self._tls: ssl.SSLContext | None = None
        if address.tls is not None:
            address.tls.read()  # for its message
            self._tls = ssl.create_default_context(cafile=address.tls.ca)
            if address.tls.certificate:
                self._tls.load_cert_chain(address.tls.certificate, address.tls.key)

    def predict(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        """Calls a signature; see :class:`Transport`."""
        if all(array.ndim and not len(array) for array in inputs.values()) and inputs:
            # JSON's [] has lost the other dimensions: ask with one row, keep none.
            one = {k: np.zeros((1, *array.shape[1:]), array.dtype) for k, array in inputs.items()}
            return {
                alias: array[:0] for alias, array in self.predict(signature, one, outputs).items()
            }
        body = {
            "signature_name": signature,
            "inputs": {alias: _to_json(array) for alias, array in inputs.items()},
        }
        answer = self._ask("POST", ":predict", json.dumps(body))["outputs"]
        named = answer if isinstance(answer, dict) else {outputs[0]: answer}
        missing = [alias for alias in outputs if alias not in named]
        if missing:
            raise errors.InvalidRequestError(
                f"{self.address.target}: signature {signature!r} gives no {', '.join(missing)}"
            )
        return {alias: np.array(named[alias]) for alias in outputs}

    def status(self) -> list[VersionStatus]:
        """The model's versions, highest first."""
        from google.protobuf import json_format

        answer = self._ask("GET", "")
        return statuses_of(json_format.ParseDict(answer, protos.GetModelStatusResponse()))

    def metadata(self) -> tuple[int, Any]:
        """The version that answers now, and its ``SignatureDefMap``."""
        from google.protobuf import json_format

        answer = self._ask("GET", "/metadata")
        known, definitions = answer["metadata"]["signature_def"], protos.SignatureDefMap()
        json_format.ParseDict(known, definitions, ignore_unknown_fields=True)
        return int(answer["model_spec"]["version"]), definitions

    def close(self) -> None:
        """Lets go of the connections."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _path(self) -> str:
        address = self.address
        path = "/v1/models/" + urllib.parse.quote(address.model, safe="")
        if address.version is not None:
            return f"{path}/versions/{address.version}"
        if address.label is not None:
            return f"{path}/labels/{urllib.parse.quote(address.label, safe='')}"
        return path

    def _ask(self, method: str, suffix: str, body: str | None = None) -> Any:
        """Asks until there is an answer, no time is left, or trying again is not safe."""
        end = time.monotonic() + self.address.timeout
        pause = _FIRST_PAUSE
        for left in range(self.address.retries, -1, -1):
            seconds = max(0.001, end - time.monotonic())
            code, text = self._try(method, self._path() + suffix, body, seconds)
            if code == "OK":
                try:
                    return json.loads(text)
                except ValueError:
                    raise errors.ServingError(
                        f"{self.address.target}: the answer is not JSON; is this the REST port?"
                    ) from None
            if not left or code not in _RETRYABLE or time.monotonic() + pause > end:
                break
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause *= 2
        raise translate(code, text, self.address)

    def _try(self, method: str, path: str, body: str | None, timeout: float) -> tuple[str, str]:
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except TimeoutError:
            connection.close()
            return "DEADLINE_EXCEEDED", "timed out"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return "UNAVAILABLE", str(error) or type(error).__name__
        self._idle.put(connection)
        if response.status == 200:
            return "OK", text
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]
        return _HTTP_CODES.get(response.status, "UNKNOWN"), text or response.reason

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            target = self.address.target
            if self._tls is None:
                connection = http.client.HTTPConnection(target)
            else:
                connection = http.client.HTTPSConnection(target, context=self._tls)
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection


def _to_json(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind != "O":
        return array.tolist()
    flat = [{"b64": base64.b64encode(item).decode()} for item in array.ravel()]
    return np.array(flat, object).reshape(array.shape).tolist()
