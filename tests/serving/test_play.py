"""The page to try a model on: what it asks, of either server, and itself in a real browser."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.client import ReconstructionClient
from serving.errors import InputError, ModelNotFoundError, ServerUnavailableError
from serving.play import Proxy
from tests import browser
from tests.serving import models
from tests.serving.conftest import StartServer
from tests.serving.process import RealServer, needs_binary

Ask = Any


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """From sparse to dense, so that each float of their codes varies and can move neighbours."""
    random = np.random.default_rng(0)
    return (random.random((20, 28, 28)) < random.random((20, 1, 1))) * np.uint8(255)


@pytest.fixture(scope="module")
def index(built: pathlib.Path, images: np.ndarray, tmp_path_factory: Any) -> Any:
    """Where version 1 of the small autoencoder has its index, as a run leaves one."""
    path = str(tmp_path_factory.mktemp("index") / "part.parquet")
    with ReconstructionClient.from_folder(str(built / "autoencoder" / "1")) as client:
        codes = client.encode(images)
    assert codes.std(axis=0).all()
    columns = {
        "image": pa.array([image.tobytes() for image in images], pa.binary(784)),
        "label": pa.array([None, *range(1, 20)], pa.int64()),
        "code": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), codes.shape[1]),
    }
    pq.write_table(pa.table(columns), path)
    return lambda name, version: [path] if (name, version) == ("autoencoder", 1) else []


BEFORE_A_REAL_SERVER = pytest.param("proxy, real server", marks=needs_binary)


@pytest.fixture(params=["stand-in", "proxy", "proxy over REST", BEFORE_A_REAL_SERVER])
def url(
    request: pytest.FixtureRequest, start_server: StartServer, built: pathlib.Path, index: Any
) -> Iterator[str]:
    """Where the page is: beside REST, and before a server without one."""
    if request.param == "proxy, real server":
        flags = "--model_name=autoencoder", f"--model_base_path={built / 'autoencoder'}"
        with RealServer("autoencoder", *flags) as real:
            client = ReconstructionClient(real.address, model="autoencoder")
            with client, Proxy(client, 0, index) as proxy:
                yield proxy.url
        return
    served = {"autoencoder": built / "autoencoder"}
    server = start_server(served, rest_port=0, index_of=index)
    if request.param == "stand-in":
        yield f"http://{server.rest_address}/"
        return
    rest = request.param.endswith("REST")
    target = server.rest_address if rest else server.address
    client = ReconstructionClient(str(target), model="autoencoder", rest=rest)
    with client, Proxy(client, 0, index) as proxy:
        yield proxy.url


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """The status, and the answer, read where it is JSON."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=300)
    with contextlib.closing(connection):
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, headers)
        response = connection.getresponse()
        answer = response.read().decode()
        if response.headers["Content-Type"] == "application/json":
            return response.status, json.loads(answer)
        return response.status, answer


def predict(url: str, signature: str, inputs: Any) -> Any:
    body = {"signature_name": signature, "inputs": inputs}
    status, answer = ask(url, "POST", "/v1/models/autoencoder:predict", body)
    assert status == 200, answer
    return answer["outputs"]


def test_page_and_models(url: str) -> None:
    status, page = ask(url, "GET", "/?model=autoencoder")
    assert status == 200 and page.startswith("<!doctype html>")
    assert ask(url, "HEAD", "/") == (200, "")
    status, answer = ask(url, "GET", "/play/models")
    described = answer["models"]["autoencoder"]
    assert (status, list(answer["models"]), described["version"]) == (200, ["autoencoder"], 1)
    assert described["signatures"]["decode"] == ["code"]
    assert {"reconstruct", "generate", "classify"} < set(described["signatures"])


def test_calls_give_what_the_client_gives(
    url: str, built: pathlib.Path, images: np.ndarray
) -> None:
    with ReconstructionClient.from_folder(str(built / "autoencoder" / "1")) as client:
        expected, classes = client.reconstruct(images[:2]), client.classify(images[:2])
        drawn = client.generate(3, seed=5)
    found = predict(url, "reconstruct", {"images": images[:2].tolist()})
    for name, array in zip(("reconstruction", "reconstruction_error", "code"), expected):
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)
    assert found["is_anomaly"] == expected.is_anomaly.tolist()
    assert (
        predict(url, "classify", {"images": images[:2].tolist()})["label"] == classes.label.tolist()
    )
    again = predict(url, "decode", {"code": found["code"]})
    np.testing.assert_allclose(again, expected.images, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        predict(url, "generate", {"seed": [5, 6, 7]}), drawn, rtol=1e-4, atol=1e-5
    )


def test_neighbours_are_those_of_the_index(url: str, images: np.ndarray) -> None:
    code = predict(url, "encode", {"images": images[:2].tolist()})
    for row, label in ((0, -1), (1, 1)):
        body = {"model": "autoencoder", "code": code[row]}
        status, answer = ask(url, "POST", "/play/neighbours", body)
        first, *others = answer["neighbours"]
        assert status == 200 and len(others) == 7
        assert (first["label"], first["image"]) == (label, images[row].ravel().tolist())
        assert first["distance"] == pytest.approx(0, abs=1e-3) and others[0]["distance"] > 0.01


@pytest.mark.parametrize(
    "body", [{"model": "other", "code": [0.0]}, {"code": []}, {"model": "autoencoder", "code": [1]}]
)
def test_no_neighbours_of_what_is_not_indexed(url: str, body: Any) -> None:
    code = (*body["code"], *[0.0] * 31)
    wanted = {**body, "code": code} if body.get("model") == "other" else body
    assert ask(url, "POST", "/play/neighbours", wanted) == (200, {"neighbours": None})


def test_without_an_index_there_are_no_neighbours(
    start_server: StartServer, built: pathlib.Path
) -> None:
    server = start_server({"autoencoder": built / "autoencoder"}, rest_port=0)
    body = {"model": "autoencoder", "code": [0.0] * 32}
    answer = ask(f"http://{server.rest_address}", "POST", "/play/neighbours", body)
    assert answer == (200, {"neighbours": None})


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        ("score", [[1]]),
        ("score", {"images": "x"}),
        ("score", {"images": [300]}),
        ("score", {"codes": [1]}),
        ("nothing", {"images": [1]}),
        (["score"], {"images": [1]}),
    ],
)
def test_a_call_that_is_none_is_refused(url: str, signature: Any, inputs: Any) -> None:
    body = {"signature_name": signature, "inputs": inputs}
    status, answer = ask(url, "POST", "/v1/models/autoencoder:predict", body)
    assert status == 400 and answer["error"]


@pytest.mark.parametrize("code", ["x", [[1], [1, 2]], [float("nan")] * 32, None])
def test_a_code_that_is_none_is_refused_in_a_line(url: str, code: Any) -> None:
    for body in ([], {"model": "autoencoder", "code": code}):
        status, answer = ask(url, "POST", "/play/neighbours", body)
        assert status == 400 and "\n" not in answer["error"]


def test_other_paths_are_not_there(url: str) -> None:
    for method, path in (("GET", "/play.html"), ("GET", "/play/x"), ("PUT", "/")):
        assert ask(url, method, path)[0] in (404, 501)


@pytest.fixture
def proxy(start_server: StartServer, built: pathlib.Path) -> Iterator[Proxy]:
    server = start_server({"autoencoder": built / "autoencoder"})
    client = ReconstructionClient(server.address, model="autoencoder", timeout=300)
    with client, Proxy(client, 0) as proxy:
        yield proxy


def test_the_proxy_passes_nothing_else_on(proxy: Proxy) -> None:
    body = {"signature_name": "evaluate", "inputs": {"examples": []}}
    status, answer = ask(proxy.url, "POST", "/v1/models/autoencoder:predict", body)
    assert status == 400 and "evaluate" in answer["error"]
    assert ask(proxy.url, "GET", "/v1/models/autoencoder")[0] == 404
    assert ask(proxy.url, "POST", "/v1/models/other:predict", body)[0] == 404
    assert ask(proxy.url, "GET", "/", Host="elsewhere.example")[0] == 403
    status, _ = ask(proxy.url, "POST", "/play/neighbours", **{"Content-Length": "9" * 8})
    assert status == 413


def test_a_server_that_has_gone_is_said(start_server: StartServer, built: pathlib.Path) -> None:
    server = start_server({"autoencoder": built / "autoencoder"})
    client = ReconstructionClient(server.address, model="autoencoder", retries=0)
    with client, Proxy(client, 0) as proxy:
        server.stop(0)
        status, answer = ask(proxy.url, "GET", "/play/models")
        assert status == 502 and f"no server answers at {server.address}" in answer["error"]


def test_where_no_page_can_be_offered(start_server: StartServer, built: pathlib.Path) -> None:
    server = start_server({"autoencoder": built / "autoencoder"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        client = ReconstructionClient(server.address, model="autoencoder")
        with client, pytest.raises(InputError, match=f"127.0.0.1:{port}: .*--port"):
            Proxy(client, port)
    client = ReconstructionClient(server.address, model="other")
    with client, pytest.raises(ModelNotFoundError):
        Proxy(client, 0)
    server.stop(0)
    client = ReconstructionClient(server.address, model="autoencoder", retries=0)
    with client, pytest.raises(ServerUnavailableError):
        Proxy(client, 0)


# In a browser.

PAINTED = """(id => {
    const canvas = document.getElementById(id);
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return data.some((v, i) => i % 4 < 3 && v > 20);
})"""
PIXELS = "document.getElementById('{}').toDataURL()"
ERROR = "document.getElementById('error').value"


def middle(
    page: browser.Page, selector: str, x: float = 0.5, y: float = 0.5
) -> tuple[float, float]:
    """A place within an element, in CSS pixels of the window."""
    return tuple(
        page.evaluate(f"""(() => {{
            const element = document.querySelector("{selector}");
            element.scrollIntoView({{block: "center"}});
            const box = element.getBoundingClientRect();
            return [box.left + {x} * box.width, box.top + {y} * box.height];
        }})()""")
    )


def draw(page: browser.Page, *points: tuple[float, float]) -> None:
    page.drag(*(middle(page, "#pad", x, y) for x, y in points))


def focused(page: browser.Page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.className")


def settled(page: browser.Page, expression: str, before: Any) -> Any:
    """An expression's value once it is another one."""
    page.wait_for(f"{expression} !== {json.dumps(before)}")
    return page.evaluate(expression)


@browser.needs_browser
def test_drawing_and_dragging_in_a_browser(url: str) -> None:
    with browser.open_page(url) as page:
        page.resize(1200)
        page.wait_for("document.querySelectorAll('#samples li').length")
        assert not page.evaluate(PAINTED + "('reconstruction')")
        assert page.evaluate(ERROR) == ""
        draw(page, (0.5, 0.1), (0.5, 0.5), (0.5, 0.9))
        page.wait_for(PAINTED + "('reconstruction')")
        page.wait_for(PAINTED + "('seen')")
        page.wait_for(PAINTED + "('decoded')")
        first = settled(page, ERROR, "")
        assert 0 < float(first) < 1
        assert page.evaluate("document.getElementById('verdict').textContent")
        assert "Reads it as a" in page.evaluate("document.getElementById('class').textContent")
        # One more stroke: another image, another error.
        draw(page, (0.2, 0.2), (0.8, 0.2))
        settled(page, ERROR, first)
        page.wait_for("document.querySelectorAll('#neighbours li').length === 8")
        bars = page.evaluate("document.querySelectorAll('.bar').length")
        assert bars == 32
        # A bar by the mouse, and by the keys.
        decoded, near = page.evaluate(PIXELS.format("decoded")), "neighbours.textContent"
        nearest = page.evaluate(near)
        page.drag(middle(page, ".bar", 0.5, 0.9), middle(page, ".bar", 0.5, 0.05))
        top = page.evaluate("Number(document.querySelector('.bar').ariaValueNow)")
        assert top > 0.9 * page.evaluate("Number(document.querySelector('.bar').ariaValueMax)")
        decoded = settled(page, PIXELS.format("decoded"), decoded)
        settled(page, near, nearest)
        page.press("PageDown")
        assert page.evaluate("Number(document.querySelector('.bar').ariaValueNow)") < top
        settled(page, PIXELS.format("decoded"), decoded)
        page.evaluate("document.getElementById('clear').click()")
        assert not page.evaluate(PAINTED + "('reconstruction')")
        assert page.problems == []
        assert {urllib.parse.urlsplit(r)[:2] for r in page.requests if r[:5] != "data:"} == {
            urllib.parse.urlsplit(url)[:2]
        }


@browser.needs_browser
def test_the_keyboard_reaches_all(proxy: Proxy) -> None:
    with browser.open_page(proxy.url) as page:
        page.wait_for("document.querySelectorAll('#samples li').length")
        page.press("Tab")
        assert focused(page) == "pad"
        page.press(" ", *["ArrowDown"] * 6, *["ArrowRight"] * 3, " ")
        page.wait_for(PAINTED + "('reconstruction')")
        page.wait_for("document.querySelectorAll('.bar').length")
        reached = []
        for _ in range(4):
            page.press("Tab")
            reached.append(focused(page))
        assert reached == ["clear", "bar", "undo", "more"]
        page.evaluate("document.querySelector('.bar').focus()")
        decoded = page.evaluate(PIXELS.format("decoded"))
        page.press("ArrowRight", "End")
        assert page.evaluate("document.activeElement.ariaLabel") == "code 1"
        settled(page, PIXELS.format("decoded"), decoded)
        samples = page.evaluate("samples.firstChild.firstChild.ariaLabel")
        page.evaluate("document.getElementById('more').focus()")
        page.press("Enter")
        settled(page, "samples.firstChild.firstChild.ariaLabel", samples)
        assert page.problems == []


@browser.needs_browser
def test_phones_and_desks_light_and_dark(proxy: Proxy) -> None:
    with browser.open_page(proxy.url) as page:
        page.wait_for("document.querySelectorAll('#samples li').length")
        for width in (390, 1440):
            for dark in (False, True):
                page.resize(width, dark=dark)
                draw(page, (0.3, 0.2), (0.7, 0.8))
                page.wait_for(PAINTED + "('decoded')")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("""
                    [...document.querySelectorAll("body *")].every(e =>
                        parseFloat(getComputedStyle(e).fontSize) >= 11)""")
                ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(20, 23, 27)") == dark


@browser.needs_browser
def test_a_finger_draws_and_drags_and_does_not_scroll(proxy: Proxy) -> None:
    with browser.open_page(proxy.url) as page:
        page.resize(390)
        page.wait_for("document.querySelectorAll('#samples li').length")
        stroke = [middle(page, "#pad", 0.5, y) for y in (0.1, 0.5, 0.9)]
        before = page.evaluate("scrollY")
        page.swipe(*stroke)
        settled(page, ERROR, "")
        assert page.evaluate("[strokes.length, strokes[0].length >= 3, scrollY]") == [
            1,
            True,
            before,
        ]
        page.wait_for(PAINTED + "('decoded')")
        decoded = page.evaluate(PIXELS.format("decoded"))
        page.swipe(middle(page, ".bar", 0.5, 0.9), middle(page, ".bar", 0.5, 0.1))
        settled(page, PIXELS.format("decoded"), decoded)
        assert page.problems == []


@browser.needs_browser
def test_what_a_model_cannot_do_is_hidden(
    start_server: StartServer, tmp_path: pathlib.Path
) -> None:
    lacking = ("reconstruct", "decode", "generate", "classify")
    models.write_autoencoder(tmp_path / "bare", 3, without=lacking)
    models.write_conformance(tmp_path / "other", 4)
    served = {name: tmp_path / name for name in ("bare", "other")}
    server = start_server(served, rest_port=0)
    hidden = "['{}'].every(id => document.getElementById(id).hidden)"
    with browser.open_page(f"http://{server.rest_address}/") as page:
        page.wait_for("version.textContent === 'bare, version 3'")
        assert page.evaluate(hidden.format("','".join(["drawn", "decoder", "near"])))
        draw(page, (0.3, 0.2), (0.7, 0.8))
        settled(page, ERROR, "")
        page.wait_for("document.querySelectorAll('.bar').length")
        page.evaluate("model.value = 'other'; model.dispatchEvent(new Event('change'))")
        assert "is no autoencoder" in page.evaluate("problem.textContent")
        assert page.evaluate(hidden.format("','".join(["draw", "answer", "coded", "drawn"])))


@browser.needs_browser
def test_an_error_is_one_line_on_the_page_and_goes_when_it_is_over(
    start_server: StartServer, built: pathlib.Path
) -> None:
    server = start_server({"autoencoder": built / "autoencoder"}, rest_port=0)
    assert server.rest_port is not None
    with browser.open_page(f"http://{server.rest_address}/") as page:
        page.wait_for("version.textContent")
        server.stop(0)
        draw(page, (0.3, 0.2), (0.7, 0.8))
        assert "does not answer" in page.wait_for("problem.textContent")
        height = page.evaluate("problem.getBoundingClientRect().height")
        assert height < 2 * page.evaluate("parseFloat(getComputedStyle(problem).lineHeight)")
        again = {"autoencoder": built / "autoencoder"}
        start_server(again, rest_port=server.rest_port)
        page.wait_for("!problem.textContent")
        draw(page, (0.3, 0.8), (0.7, 0.2))
        settled(page, ERROR, "")
