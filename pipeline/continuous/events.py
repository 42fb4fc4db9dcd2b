"""What happened, told to people, machines and a log file.

Every event is a line of JSON in ``<root>/continuous/events.jsonl``. The notable
ones also go to the user's command and webhook, from threads of their own: a
receiver that hangs delays nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging.handlers
import os
import pathlib
import shlex
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

LOG_FILE = "events.jsonl"
_MAX_BYTES = 10 * 2**20
_TIMEOUT = 10.0
_MAX_WAITING = 8

NOTABLE = frozenset(
    {
        "pushed",
        "refused",
        "quarantined",
        "set_aside",
        "gap",
        "run_error",
        "disk_full",
        "promoted",
        "rolled_back",
        "undecided",
        "served_error",
    }
)


class Events:
    """Tells what happens.

    Args:
      say: Shows an event to whoever started the watcher.
      command: Run at notable events, with the event as JSON on stdin.
      url: Gets notable events as a JSON POST.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        say: Callable[[dict[str, Any]], None],
        *,
        command: str | None = None,
        url: str | None = None,
    ) -> None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        self._log = logging.handlers.RotatingFileHandler(
            folder / LOG_FILE, maxBytes=_MAX_BYTES, backupCount=1, encoding="utf-8", delay=True
        )
        # A full disk must not end the watch; the terminal has the event.
        self._log.handleError = lambda record: None  # type: ignore[method-assign]
        self._say = say
        self._command = shlex.split(command) if command else None
        self._url = url
        self._threads: list[threading.Thread] = []

    def tell(self, event: str, **values: Any) -> None:
        """Logs an event, shows it, and sends it where it is notable."""
        record = {"time": _now(), "event": event, **values}
        self._write(record)
        self._say(record)
        if event in NOTABLE and (self._command or self._url):
            self._threads = [t for t in self._threads if t.is_alive()]
            if len(self._threads) >= _MAX_WAITING:
                self._complain("dropped: too many notifications are under way")
                return
            thread = threading.Thread(target=self._send, args=(record,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Waits a little for notifications under way."""
        for thread in self._threads:
            thread.join(_TIMEOUT + 1)
        self._log.close()

    def _send(self, record: dict[str, Any]) -> None:
        data = json.dumps(record).encode()
        if self._command:
            try:
                done = subprocess.run(
                    self._command,
                    input=data,
                    timeout=_TIMEOUT,
                    check=False,
                    capture_output=True,
                    env={**os.environ, "MNIST_AE_EVENT": record["event"]},
                )
                if done.returncode:
                    self._complain(f"{self._command[0]} ended with code {done.returncode}")
            except (OSError, subprocess.SubprocessError) as e:
                self._complain(f"{self._command[0]}: {e}")
        if self._url:
            request = urllib.request.Request(
                self._url, data, {"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT):
                    pass
            except (OSError, ValueError) as e:
                self._complain(f"{self._url}: {getattr(e, 'reason', e)}")

    def _complain(self, text: str) -> None:
        self._write({"time": _now(), "event": "notification_failed", "reason": text[:500]})

    def _write(self, record: dict[str, Any]) -> None:
        self._log.handle(logging.makeLogRecord({"msg": json.dumps(record)}))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def as_text(record: dict[str, Any]) -> str:
    """An event as a line for people."""
    rest = {k: v for k, v in record.items() if k not in ("time", "event", "span", "reason")}
    words = [record["time"][:19].replace("T", " "), record["event"]]
    if "span" in record:
        words.append(f"span {record['span']}")
    words += [f"{key}={value}" for key, value in rest.items() if value is not None]
    if record.get("reason"):
        words.append(f": {record['reason']}")
    return " ".join(words).replace(" : ", ": ")
