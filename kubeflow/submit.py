"""Talks to a Kubeflow Pipelines backend: upload, run, schedule, status, cancel.

KFP's REST interface ``/apis/v2beta1``, the same in 2.0 to 2.16, by way of
``requests``. The SDK's own client knows no time-outs, picks up contexts from
the home folder and takes five seconds to import.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import requests

from pipeline.errors import UserError

_API = "/apis/v2beta1"
_TRIES = 4
_PAUSE_SECONDS = 0.5
_CONNECT_SECONDS = 10.0
_PAGE = 100
_BAD_GATEWAY = (502, 503, 504)
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
_INTERVAL_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_CRON_FIELDS = 6
_CRON_RANGES = ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MAX_CONCURRENCY = 10


class KubeflowError(Exception):
    """The backend did not do it: one line, exit code 3."""

    exit_code = 3


@dataclasses.dataclass(frozen=True)
class Credentials:
    """How to prove who one is; every field may be empty.

    Attributes:
      token: Bearer token.
      token_file: File with one, such as a mounted service-account token; read
        anew for each request, since it changes.
      cookie: Session cookie of an authenticating proxy, ``name=value``.
      ca_file: Certificate authorities to trust.
    """

    token: str | None = dataclasses.field(default=None, repr=False)
    token_file: str | None = None
    cookie: str | None = dataclasses.field(default=None, repr=False)
    ca_file: str | None = None


@dataclasses.dataclass(frozen=True)
class TaskState:
    """A task of a run: KFP's name of it, and its state."""

    name: str
    state: str


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run as the backend sees it.

    Attributes:
      run_id: KFP's.
      name: For people.
      state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED``, ...
      error: What the backend says went wrong, or "".
      tasks: In the order they began.
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
    if len(fields) == _CRON_FIELDS - 1:
        raise UserError(
            f"--cron {cron!r}: KFP wants six fields, seconds first; you mean '0 {cron}'"
        )
    if len(fields) != _CRON_FIELDS:
        raise UserError(
            f"--cron {cron!r}: expected six fields (second minute hour day month weekday), such as "
            "'0 30 2 * * *' for 02:30 every night"
        )
    for text, (low, high) in zip(fields, _CRON_RANGES):
        numbers = [part for part in text.replace("/", ",").replace("-", ",").split(",")]
        for number in numbers:
            if number.isdigit() and not low <= int(number) <= max(high, _step_limit(text)):
                raise UserError(f"--cron {cron!r}: {number} is not in {low} to {high}")
            if not (number.isdigit() or number in ("*", "?") or number.isalpha()):
                raise UserError(f"--cron {cron!r}: {text!r} is no field of a cron line")
    return " ".join(fields)


def _step_limit(text: str) -> int:
    return int(text.rpartition("/")[2]) if "/" in text else 0


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
          credentials: How to prove who one is.
          namespace: Of a multi-user installation; None for a single-user one.
          timeout: Seconds to wait for an answer.

        Raises:
          UserError: The address or a file of the credentials is no good.
        """
        if "://" not in host:
            host = ("http://" if _is_local(host) else "https://") + host
        parts = urllib.parse.urlsplit(host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--host {host!r}: expected an address such as https://kfp.example.org")
        self._base = host.rstrip("/")
        self._credentials = credentials
        self._namespace = namespace
        self._timeout = timeout
        self._session = requests.Session()
        # What a .netrc says of that host is not meant for this.
        self._session.trust_env = False
        if credentials.ca_file:
            if not os.path.isfile(credentials.ca_file):
                raise UserError(f"--ca-cert {credentials.ca_file}: no such file")
            self._session.verify = credentials.ca_file

    # Pipelines.

    def upload(self, name: str, version: str, package: str) -> tuple[str, str]:
        """Uploads a compiled pipeline, new or as a new version.

        Args:
          name: Of the pipeline.
          version: Of the version.
          package: The YAML.

        Returns:
          Identifiers of the pipeline and of the version.
        """
        pipeline_id = self.find("pipelines", name, "pipeline_id")
        file = {"uploadfile": ("pipeline.yaml", package.encode(), "application/yaml")}
        if pipeline_id is None:
            made = self._post(
                "/pipelines/upload", params={"name": name, **self._where()}, files=file
            )
            pipeline_id = made["pipeline_id"]
            versions = self._get(
                f"/pipelines/{pipeline_id}/versions",
                params={"page_size": 1, "sort_by": "created_at desc"},
            )
            newest = (versions.get("pipeline_versions") or [{}])[0]
            return pipeline_id, newest.get("pipeline_version_id", "")
        made = self._post(
            "/pipelines/upload_version",
            params={"name": version, "pipelineid": pipeline_id},
            files=file,
        )
        return pipeline_id, made["pipeline_version_id"]

    def experiment(self, name: str) -> str:
        """The identifier of an experiment, which is made where there is none."""
        found = self.find("experiments", name, "experiment_id")
        if found is not None:
            return found
        body = {"display_name": name, **self._where()}
        return self._post("/experiments", json=body)["experiment_id"]

    def find(self, kind: str, name: str, key: str) -> str | None:
        """The identifier of what is called ``name``, or None."""
        predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
        answer = self._get(
            f"/{kind}",
            params={
                "filter": json.dumps({"predicates": [predicate]}),
                "page_size": _PAGE,
                **self._where(),
            },
        )
        for entry in answer.get(kind) or []:
            if entry.get("display_name", entry.get("name")) == name:
                return entry[key]
        return None

    # Runs.

    def run(
        self,
        name: str,
        *,
        pipeline_id: str,
        version_id: str,
        experiment_id: str,
        parameters: Mapping[str, Any],
        service_account: str | None,
    ) -> str:
        """Starts a run and returns its identifier."""
        body = self._job(name, pipeline_id, version_id, experiment_id, parameters, service_account)
        return self._post("/runs", json=body)["run_id"]

    def schedule(
        self,
        name: str,
        *,
        pipeline_id: str,
        version_id: str,
        experiment_id: str,
        parameters: Mapping[str, Any],
        service_account: str | None,
        cron: str | None,
        interval_seconds: int | None,
        max_concurrency: int,
        catch_up: bool,
    ) -> str:
        """Makes a recurring run and returns its identifier.

        Raises:
          UserError: ``max_concurrency`` is not 1 to 10.
        """
        if not 1 <= max_concurrency <= _MAX_CONCURRENCY:
            raise UserError(f"--max-concurrency {max_concurrency}: KFP takes 1 to 10")
        trigger: dict[str, Any] = (
            {"cron_schedule": {"cron": cron}}
            if cron
            else {"periodic_schedule": {"interval_second": str(interval_seconds)}}
        )
        body = {
            **self._job(name, pipeline_id, version_id, experiment_id, parameters, service_account),
            "trigger": trigger,
            "max_concurrency": str(max_concurrency),
            "no_catchup": not catch_up,
            "mode": "ENABLE",
            **self._where(),
        }
        return self._post("/recurringruns", json=body)["recurring_run_id"]

    def state(self, run_id: str) -> RunState:
        """How far a run is."""
        run = self._get(f"/runs/{urllib.parse.quote(run_id, safe='')}")
        details = (run.get("run_details") or {}).get("task_details") or []
        tasks = [
            TaskState(task.get("display_name") or task.get("task_id", "?"), task.get("state", "?"))
            for task in sorted(details, key=lambda t: t.get("start_time") or "")
            if task.get("display_name") not in ("root", run.get("display_name"))
            and not str(task.get("display_name", "")).endswith("-driver")
        ]
        error = (run.get("error") or {}).get("message", "")
        return RunState(
            run_id, run.get("display_name", ""), run.get("state") or "PENDING", error, tasks
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
        self._post(f"/runs/{urllib.parse.quote(run_id, safe='')}:terminate", repeatable=True)

    # Requests.

    def _job(
        self,
        name: str,
        pipeline_id: str,
        version_id: str,
        experiment_id: str,
        parameters: Mapping[str, Any],
        service_account: str | None,
    ) -> dict[str, Any]:
        reference = {"pipeline_id": pipeline_id}
        if version_id:
            reference["pipeline_version_id"] = version_id
        body: dict[str, Any] = {
            "display_name": name,
            "experiment_id": experiment_id,
            "pipeline_version_reference": reference,
            "runtime_config": {"parameters": dict(parameters)},
        }
        if service_account:
            body["service_account"] = service_account
        return body

    def _where(self) -> dict[str, str]:
        return {"namespace": self._namespace} if self._namespace else {}

    def _get(self, path: str, **arguments: Any) -> dict[str, Any]:
        return self._send("GET", path, repeatable=True, **arguments)

    def _post(self, path: str, *, repeatable: bool = False, **arguments: Any) -> dict[str, Any]:
        return self._send("POST", path, repeatable=repeatable, **arguments)

    def _send(self, method: str, path: str, *, repeatable: bool, **arguments: Any) -> Any:
        for attempt in range(1, _TRIES + 1):
            last = attempt == _TRIES
            try:
                answer = self._session.request(
                    method,
                    self._base + _API + path,
                    headers=self._headers(),
                    timeout=(min(_CONNECT_SECONDS, self._timeout), self._timeout),
                    allow_redirects=False,
                    **arguments,
                )
            except requests.exceptions.SSLError as e:
                raise KubeflowError(
                    f"{self._base}: its certificate is not trusted; name its authority with "
                    f"--ca-cert FILE ({_reason(e)})"
                ) from None
            except requests.exceptions.ConnectTimeout:
                problem = "does not take a connection"
            except requests.exceptions.ReadTimeout:
                if not repeatable:
                    raise KubeflowError(
                        f"{self._base}: no answer to {method} {path} in {self._timeout:g} s; it "
                        "may have been done all the same: look with 'mnist-ae kubeflow status' or "
                        "in the web interface before you try again"
                    ) from None
                problem = f"no answer in {self._timeout:g} s"
            except requests.exceptions.ConnectionError as e:
                if not repeatable and not _never_arrived(e):
                    raise KubeflowError(
                        f"{self._base}: the connection broke in {method} {path}; it may have been "
                        "done all the same: look before you try again"
                    ) from None
                problem = f"cannot be reached ({_reason(e)}); check --host"
            except requests.exceptions.RequestException as e:
                raise KubeflowError(f"{self._base}: {_reason(e)}") from None
            else:
                if answer.status_code not in _BAD_GATEWAY or not repeatable:
                    return self._read(method, path, answer)
                problem = f"answers {answer.status_code} {answer.reason}"
            if last:
                raise KubeflowError(f"{self._base}: {problem} (tried {attempt} times)")
            time.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _headers(self) -> dict[str, str]:
        own, headers = self._credentials, {}
        token = own.token
        if own.token_file:
            try:
                with open(own.token_file, encoding="utf-8") as f:
                    token = f.read().strip()
            except (OSError, UnicodeDecodeError) as e:
                reason = getattr(e, "strerror", None) or "no text"
                raise UserError(f"{own.token_file}: cannot be read ({reason})") from None
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if own.cookie:
            headers["Cookie"] = own.cookie
        return headers

    def _read(self, method: str, path: str, answer: requests.Response) -> Any:
        status = answer.status_code
        where = f"{self._base}{_API}{path}"
        if status in (401, 403) or 300 <= status < 400:
            raise KubeflowError(
                f"{self._base}: not let in ({status}); the token or cookie is missing, expired or "
                "may not do this: renew it (--token-file, MNIST_AE_KFP_TOKEN, MNIST_AE_KFP_COOKIE)"
            )
        if status == 404 and not answer.headers.get("Content-Type", "").startswith(
            "application/json"
        ):
            raise KubeflowError(f"{where}: 404; is that a Kubeflow Pipelines 2 backend?")
        try:
            content = answer.json() if answer.content else {}
        except ValueError:
            content = None
        if status >= 400:
            said = content if isinstance(content, dict) else {}
            message = said.get("error_message") or said.get("message") or said.get("error")
            text = " ".join(str(message or answer.reason or "no reason given").split())[:300]
            raise KubeflowError(f"{method} {where}: {status}: {text}")
        if not isinstance(content, dict):
            raise KubeflowError(f"{where}: the answer is no JSON; is that Kubeflow Pipelines 2?")
        return content


def new_name(base: str) -> str:
    """A name for a version or run that no other has."""
    return f"{base}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"


def _is_local(host: str) -> bool:
    name = host.partition("/")[0].rpartition(":")[0] or host
    return name in ("localhost", "127.0.0.1", "[::1]")


def _never_arrived(error: requests.exceptions.ConnectionError) -> bool:
    """Whether no connection was made, so that nothing can have happened."""
    text = repr(error)
    return "NewConnectionError" in text or "NameResolutionError" in text


def _reason(error: Exception) -> str:
    text = str(error)
    for mark, reason in (
        ("Name or service not known", "no such host"),
        ("nodename nor servname", "no such host"),
        ("Temporary failure in name resolution", "no such host"),
        ("Failed to resolve", "no such host"),
        ("Connection refused", "connection refused"),
        ("certificate verify failed", "certificate verify failed"),
        ("WRONG_VERSION_NUMBER", "it speaks no TLS; use http://"),
    ):
        if mark in text:
            return reason
    return text.strip().splitlines()[0][:200] if text.strip() else type(error).__name__
