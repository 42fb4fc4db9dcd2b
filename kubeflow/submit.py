"""A Kubeflow Pipelines backend: upload, run, schedule, status, cancel.

KFP's REST interface ``/apis/v2beta1`` by way of ``ApiClient``, the core of the
SDK's generated client. ``kfp.Client`` above it knows no time-outs, waits half a
minute for a backend that is not there, writes into the home folder and takes
five seconds to import; the generated services between the two have other names
in every version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import socket
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import kfp_server_api
import urllib3

from pipeline.errors import UserError
from serving.errors import Error

# Backends before 2.5 do not give a task the identifier of its run.
OLDEST_BACKEND = (2, 5)
PAUSE_SECONDS = 0.5
_API = "/apis/v2beta1"
_TRIES = 4
_CONNECT_SECONDS = 10.0
_PAGE = 100
_BAD_GATEWAY = (502, 503, 504)
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_DRIVER = "-driver"
_INTERVAL_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
# Lowest, highest and names from the lowest on of each field, as the backend's parser has them
# (robfig/cron 1.2, spec.go).
_CRON_FIELDS = (
    (0, 59, ""),
    (0, 59, ""),
    (0, 23, ""),
    (1, 31, ""),
    (1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    (0, 6, "sun mon tue wed thu fri sat"),
)
_CRON_PART = re.compile(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/(\d+))?", re.ASCII)


class KubeflowError(Error):
    """A backend that did not do it: one line, exit code 3."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Credentials:
    """How to prove who one is; every field may be empty.

    Attributes:
      token_file: File with one, such as a mounted service-account token; read
        anew for each request, since it changes.
      cookie: Session cookie of an authenticating proxy, ``name=value``.
    """

    token: str | None = dataclasses.field(default=None, repr=False)
    token_file: str | None = None
    cookie: str | None = dataclasses.field(default=None, repr=False)
    ca_file: str | None = None

    def headers(self) -> dict[str, str]:
        """The headers of a request.

        Raises:
          UserError: The token's file cannot be read.
        """
        token, headers = self.token, {}
        if self.token_file:
            try:
                with open(self.token_file, encoding="utf-8") as f:
                    token = f.read().strip()
            except UnicodeDecodeError:
                raise UserError(f"{self.token_file}: cannot be read (no text)") from None
            except OSError as e:
                raise UserError(f"{self.token_file}: cannot be read ({e.strerror})") from None
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self.cookie:
            headers["Cookie"] = self.cookie
        return headers


@dataclasses.dataclass(frozen=True)
class TaskState:
    """A task of a run: KFP's name of it, and its state."""

    name: str
    state: str


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run as the backend sees it.

    Attributes:
      state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED``, ...
      error: What the backend says went wrong, or "".
    """

    run_id: str
    name: str
    state: str
    error: str
    tasks: list[TaskState]


def check_cron(cron: str) -> str:
    """A cron line of KFP: six fields, seconds first.

    Raises:
      UserError: It is not.
    """
    fields = cron.split()
    if len(fields) == len(_CRON_FIELDS) - 1:
        raise UserError(
            f"--cron {cron!r}: KFP wants six fields, seconds first; you mean '0 {cron}'"
        )
    if len(fields) != len(_CRON_FIELDS):
        raise UserError(
            f"--cron {cron!r}: expected six fields (second minute hour day month weekday), such as "
            "'0 30 2 * * *' for 02:30 every night"
        )
    for text, (low, high, names) in zip(fields, _CRON_FIELDS):
        named = {name: low + i for i, name in enumerate(names.split())}
        for part in text.split(","):
            form = _CRON_PART.fullmatch(part)
            words = [word.lower() for word in form.groups()[:2] if word] if form else []
            if not form or not all(word.isdecimal() or word in named for word in words):
                raise UserError(f"--cron {cron!r}: {part!r} is no field of a cron line")
            numbers = [named[word] if word in named else int(word) for word in words]
            for number in numbers:
                if not low <= number <= high:
                    raise UserError(f"--cron {cron!r}: {number} is not in {low} to {high}")
            if numbers != sorted(numbers) or (form.group(3) and not int(form.group(3))):
                raise UserError(f"--cron {cron!r}: {part!r} never comes")
    return " ".join(fields)


def parse_interval(text: str) -> int:
    """``90s``, ``15m``, ``6h``, ``1d`` to seconds.

    Raises:
      UserError: No such form, or under a minute.
    """
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in _INTERVAL_UNITS:
        raise UserError(f"--every {text!r}: expected a number and a unit, such as 15m, 6h or 1d")
    seconds = int(number) * _INTERVAL_UNITS[unit]
    if seconds < 60:
        raise UserError(f"--every {text}: a run takes minutes; at least 60s")
    return seconds


def trigger(
    cron: str | None, every: str | None, *, max_concurrency: int, catch_up: bool
) -> dict[str, Any]:
    """What the backend wants to know of a recurring run beside its submission.

    It comes by a ``cron`` line, see :func:`check_cron`, or ``every`` so often.
    """
    if cron:
        when: dict[str, Any] = {"cron_schedule": {"cron": check_cron(cron)}}
    else:
        when = {"periodic_schedule": {"interval_second": str(parse_interval(every or ""))}}
    return {
        "trigger": when,
        "max_concurrency": str(max_concurrency),
        "no_catchup": not catch_up,
        "mode": "ENABLE",
    }


class KubeflowClient:
    """A backend's REST interface.

    Reads are repeated when the backend stumbles; what creates something is sent
    again only where it certainly did not arrive.
    """

    def __init__(
        self,
        host: str,
        credentials: Credentials,
        *,
        namespace: str | None = None,
        timeout: float = 30.0,
    ):
        """Makes a client; nothing is sent yet.

        Args:
          host: Address of the backend or of the proxy before it.
          namespace: Of a multi-user installation; None for a single-user one.
          timeout: Seconds to wait for an answer.

        Raises:
          UserError: The address or a file of the credentials is no good.
        """
        try:
            if "://" not in host:
                host = ("http://" if _is_local(host) else "https://") + host
            parts = urllib.parse.urlsplit(host)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise UserError(f"--host {host!r}: expected an address such as https://kfp.example.org")
        if credentials.ca_file and not os.path.isfile(credentials.ca_file):
            raise UserError(f"--ca-cert {credentials.ca_file}: no such file")
        credentials.headers()
        self._base = host.rstrip("/")
        self._credentials = credentials
        self._where = {"namespace": namespace} if namespace else {}
        self._timeout = timeout
        configuration = kfp_server_api.Configuration(host=self._base)
        configuration.ssl_ca_cert = credentials.ca_file
        configuration.retries = urllib3.Retry(
            total=_TRIES - 1,
            # Neither a certificate nor an address gets better by asking again.
            other=0,
            redirect=False,
            allowed_methods={"GET", "DELETE"},
            status_forcelist=_BAD_GATEWAY,
            raise_on_status=False,
            backoff_factor=PAUSE_SECONDS,
            respect_retry_after_header=False,
        )
        self._api = kfp_server_api.ApiClient(configuration)
        # It would tell of every retry; what comes of them is one line.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    # Pipelines.

    def upload(self, name: str, package: str) -> dict[str, str]:
        """Uploads a compiled pipeline where the backend does not have it yet.

        A version is named after its content, so that the same one is there once.

        Returns:
          The reference to it that a submission holds.

        Raises:
          KubeflowError: The backend is too old, or refused.
        """
        self._check_backend()
        pipeline_id = self._made("pipelines", name)["pipeline_id"]
        version = f"v-{hashlib.sha256(package.encode()).hexdigest()[:12]}"
        known = self._find(f"pipelines/{pipeline_id}/versions", version, key="pipeline_versions")
        made = (
            known[0]
            if known
            else self._send(
                "POST",
                "/pipelines/upload_version",
                query={"name": version, "pipelineid": pipeline_id},
                file=("pipeline.yaml", package.encode(), "application/yaml"),
            )
        )
        return {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": made["pipeline_version_id"],
        }

    def _check_backend(self) -> None:
        tag = str(self._send("GET", "/healthz").get("tag_name", ""))
        version = re.match(r"v?(\d+)\.(\d+)", tag)
        if version and (int(version[1]), int(version[2])) < OLDEST_BACKEND:
            raise KubeflowError(
                f"{self._base}: Kubeflow Pipelines {tag} does not tell a task which run it belongs "
                f"to; {'.'.join(map(str, OLDEST_BACKEND))} or newer does"
            )

    def experiment(self, name: str) -> str:
        """The identifier of an experiment, which is made where there is none."""
        return self._made("experiments", name)["experiment_id"]

    def _made(self, kind: str, name: str) -> dict[str, Any]:
        known = self._find(kind, name, **self._where)
        return (
            known[0]
            if known
            else self._send("POST", f"/{kind}", {"display_name": name, **self._where})
        )

    def _find(self, kind: str, name: str, *, key: str = "", **where: str) -> list[dict[str, Any]]:
        """What is called ``name`` among what the backend lists under ``/kind``."""
        predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
        query = {"filter": json.dumps({"predicates": [predicate]}), "page_size": _PAGE, **where}
        found = self._send("GET", f"/{kind}", query=query).get(key or kind) or []
        return [entry for entry in found if entry.get("display_name", entry.get("name")) == name]

    # Runs.

    def run(self, submission: Mapping[str, Any]) -> str:
        """Starts a run, as KFP's ``v2beta1Run`` describes it; its identifier."""
        return self._send("POST", "/runs", submission)["run_id"]

    def schedule(
        self, submission: Mapping[str, Any], trigger: Mapping[str, Any]
    ) -> tuple[str, str]:
        """Makes a recurring run, which replaces those of the same name.

        Returns:
          Its identifier, and the service account that its pods run as: backends
          before 2.17 do not heed the one of the submission.
        """
        name = submission["display_name"]
        replaced = self._find("recurringruns", name, key="recurringRuns", **self._where)
        made = self._send("POST", "/recurringruns", {**submission, **trigger, **self._where})
        for old in replaced:
            self._send("DELETE", f"/recurringruns/{_quoted(old['recurring_run_id'])}")
        return made["recurring_run_id"], made.get("service_account", "")

    def state(self, run_id: str) -> RunState:
        """How far a run is."""
        run = self._send("GET", f"/runs/{_quoted(run_id)}")
        return RunState(
            run_id,
            run.get("display_name", ""),
            run.get("state") or "PENDING",
            (run.get("error") or {}).get("message", ""),
            _tasks((run.get("run_details") or {}).get("task_details") or []),
        )

    def wait(self, run_id: str, *, timeout: float, interval: float = 5.0) -> Iterator[RunState]:
        """Yields the run's state whenever it changes, until it has ended.

        Raises:
          KubeflowError: It has not ended in time.
        """
        deadline = time.monotonic() + timeout
        last = None
        while True:
            state = self.state(run_id)
            if state != last:
                last = state
                yield state
            if state.state in ENDED:
                return
            if time.monotonic() + interval > deadline:
                raise KubeflowError(
                    f"run {run_id} has not ended in {timeout:.0f} s (it is {state.state}); it goes "
                    "on: 'mnist-ae kubeflow wait' waits again"
                )
            time.sleep(interval)

    def cancel(self, run_id: str) -> None:
        """Ends a run; its nodes mark their executions cancelled."""
        self._send("POST", f"/runs/{_quoted(run_id)}:terminate")

    # Requests.

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        file: tuple[str, bytes, str] | None = None,
    ) -> dict[str, Any]:
        """Sends a request and returns the JSON object that answers it."""
        kind = "multipart/form-data" if file else "application/json"
        accepted = {"Accept": "application/json", "Content-Type": kind}
        try:
            answer = self._api.call_api(
                _API + path,
                method,
                query_params=list((query or {}).items()),
                header_params={**accepted, **self._credentials.headers()},
                body=body,
                post_params=[("uploadfile", file)] if file else None,
                response_type="object",
                _return_http_data_only=True,
                _request_timeout=(min(_CONNECT_SECONDS, self._timeout), self._timeout),
            )
        except kfp_server_api.ApiException as e:
            raise self._refused(method, path, e) from None
        except urllib3.exceptions.HTTPError as e:
            raise self._unanswered(method, path, e) from None
        if answer == "":
            return {}
        if not isinstance(answer, dict):
            raise KubeflowError(
                f"{self._base}{_API}{path}: the answer is no JSON; is that Kubeflow Pipelines 2?"
            )
        return answer

    def _unanswered(self, method: str, path: str, error: BaseException) -> KubeflowError:
        """The error for a request that got no answer, by what the connection died of."""
        causes = tuple(_causes(error))

        def came_from(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        tried = f"(tried {_TRIES} times)"
        if came_from(ssl.SSLCertVerificationError):
            return KubeflowError(
                f"{self._base}: its certificate is not trusted; name its authority with --ca-cert "
                "FILE"
            )
        if came_from(ssl.SSLError, urllib3.exceptions.SSLError):
            return KubeflowError(f"{self._base}: it speaks no TLS; use http://")
        if came_from(urllib3.exceptions.ConnectTimeoutError):
            reason = "it does not take a connection"
            if came_from(socket.gaierror):
                reason = "no such host"
            elif came_from(ConnectionRefusedError):
                reason = "connection refused"
            return KubeflowError(
                f"{self._base}: cannot be reached ({reason}); check --host {tried}"
            )
        problem = "the connection broke"
        if came_from(urllib3.exceptions.ReadTimeoutError):
            problem = f"no answer in {self._timeout:g} s"
        if method == "POST":
            return KubeflowError(
                f"{self._base}: {problem} in POST {path}; it may have been done all the same: look "
                "with 'mnist-ae kubeflow status' or in the web interface before you try again"
            )
        return KubeflowError(f"{self._base}: {problem} {tried}")

    def _refused(self, method: str, path: str, error: kfp_server_api.ApiException) -> KubeflowError:
        """The error for an answer that is none of the good ones."""
        where, status = f"{self._base}{_API}{path}", error.status
        if status in (401, 403) or 300 <= status < 400:
            return KubeflowError(
                f"{self._base}: not let in ({status}); the token or cookie is missing, expired or "
                "may not do this: renew it (--token-file, MNIST_AE_KFP_TOKEN, MNIST_AE_KFP_COOKIE)"
            )
        try:
            said = json.loads(error.body or "")
        except ValueError:
            said = None
        if status == 404 and not isinstance(said, dict):
            return KubeflowError(f"{where}: 404; is that a Kubeflow Pipelines 2 backend?")
        said = said if isinstance(said, dict) else {}
        message = said.get("error_message") or said.get("message") or said.get("error")
        # The answer to an upload has the cause here, a stack trace below it
        # (apiserver/server/pipeline_upload_server.go, writeErrorToResponse).
        cause = str(said.get("error_details") or "").partition("\n")[0]
        if cause and cause not in str(message):
            message = f"{message}: {cause}"
        text = " ".join(str(message or error.reason or "no reason given").split())[:300]
        tried = f" (tried {_TRIES} times)" if status in _BAD_GATEWAY and method != "POST" else ""
        return KubeflowError(f"{method} {where}: {status}: {text}{tried}")


def _tasks(details: list[dict[str, Any]]) -> list[TaskState]:
    """The pipeline's tasks among the nodes of the Argo workflow that runs it.

    KFP gives each task two nodes, ``NAME-driver`` and ``NAME``
    (argocompiler/dag.go); below the latter every container is alike called
    ``executor`` (argocompiler/container.go).
    """
    details = sorted(details, key=lambda detail: detail.get("start_time") or "")
    nodes = {detail.get("display_name", ""): detail for detail in details}
    tasks = []
    for name, driver in nodes.items():
        task = name.removesuffix(_DRIVER)
        if task in (name, "root"):
            continue
        failed = driver.get("state") == "FAILED"
        state = (driver if failed else nodes.get(task, {})).get("state")
        tasks.append(TaskState(task, state or "PENDING"))
    return tasks


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it came from."""
    if error is not None:
        yield error
        yield from _causes(error.__cause__)
        yield from _causes(error.__context__)


def _quoted(identifier: str) -> str:
    return urllib.parse.quote(identifier, safe="")


def new_name(base: str) -> str:
    """A name for a version or run that no other has."""
    return f"{base}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def _is_local(host: str) -> bool:
    return urllib.parse.urlsplit(f"//{host}").hostname in ("localhost", "127.0.0.1", "::1")
