"""A headless Chromium, driven by its DevTools protocol over a websocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tornado import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT = 600.0
_FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip


def find() -> str | None:
    """A browser on this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


needs_browser = pytest.mark.skipif(
    find() is None,
    reason="no Chromium on the PATH; 'apt-get install chromium' as root, which .ci/run does",
)


class Page:
    """An open page and what it said."""

    def __init__(self, socket: Any):
        self._socket = socket
        self._loop = asyncio.get_event_loop()
        self._number = 0
        self.requests: list[str] = []
        self.problems: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command, answered."""
        self._number += 1
        number = self._number
        message = json.dumps({"id": number, "method": method, "params": params})
        self._loop.run_until_complete(self._socket.write_message(message))
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, url: str) -> None:
        """Goes there and waits until it is loaded, pictures and all."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + _TIMEOUT
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"

    def wait_for(self, expression: str) -> Any:
        """A JavaScript expression's value, once it is true."""
        deadline = time.monotonic() + _TIMEOUT
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (expression, self.problems)
            time.sleep(0.02)
        return value

    def drag(self, *points: tuple[float, float]) -> None:
        """Presses the mouse at the first point, in CSS pixels, and lets go at the last."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*points, points[-1]]):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1,
                clickCount=1,
            )  # fmt: skip

    def swipe(self, *points: tuple[float, float]) -> None:
        """Puts a finger on the first point, in CSS pixels, and takes it off at the last."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        kinds = ["touchStart", *["touchMove"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points):
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, *keys: str) -> None:
        """Presses keys, called as JavaScript does."""
        for key in keys:
            text = {"Enter": "\r", " ": " "}.get(key, "")
            code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
            for kind in ("keyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent", type=kind, key=key, text=text * (kind == "keyDown"),
                    windowsVirtualKeyCode=code,
                )  # fmt: skip

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def resize(self, width: int, *, dark: bool = False) -> None:
        """Shows the page as a screen of this width would."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    def screenshot(self, path: str | os.PathLike[str]) -> None:
        """The whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(data))

    def _read(self) -> dict[str, Any]:
        text = self._loop.run_until_complete(
            asyncio.wait_for(self._socket.read_message(), _TIMEOUT)
        )
        assert text is not None, "the browser is gone"
        message = json.loads(text)
        params = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif message.get("method") == "Network.loadingFailed":
            self.problems.append(f"not loaded: {params['errorText']}")
        elif message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            if params["type"] in ("error", "warning", "assert"):
                self.problems.append(str(params["args"]))
        elif message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        return message


@contextlib.contextmanager
def open_page(url: str) -> Iterator[Page]:
    """A page in a browser of its own, which ends with it."""
    program = find()
    assert program, "no browser"
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        process = subprocess.Popen(
            [program, *_FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = _port(pathlib.Path(profile) / "DevToolsActivePort", process)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                target = next(t for t in json.load(answer) if t["type"] == "page")
            socket = loop.run_until_complete(
                websocket.websocket_connect(target["webSocketDebuggerUrl"], max_message_size=2**28)
            )
            page = Page(socket)
            page.open(url)
            yield page
            socket.close()
        finally:
            process.terminate()
            process.wait()
            asyncio.set_event_loop(None)
            loop.close()


def _port(file: pathlib.Path, process: subprocess.Popen) -> int:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser does not open its port")
