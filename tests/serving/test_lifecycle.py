"""Versions found, loaded, swapped, refused; labels; reload; start and stop."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving import errors, protos
from serving.client import ReconstructionClient
from serving.grpc_transport import GrpcTransport
from serving.standin.server import EmbeddedServer
from serving.standin.settings import ModelSettings, ServerOptions
from serving.standin.status import StatusError
from serving.standin.versions import VersionState as State
from serving.standin.versions import list_versions, parse_version
from serving.transport import Address
from tests.serving.conftest import StartServer

Push = Callable[..., pathlib.Path]
X = {"x": np.array([[1.0]], np.float32)}


def states(server: EmbeddedServer, name: str = "m") -> dict[int, State]:
    try:
        return {item.number: item.state for item in server.models.versions(name)}
    except StatusError:
        return {}


def wait(server: EmbeddedServer, condition: Callable[[], bool], what: str) -> None:
    assert server.models.wait_for(condition, 300), f"never: {what}; {states(server)}"


def version_of_answer(server: EmbeddedServer, **choice: Any) -> int:
    with server.models.lease("m", **choice) as servable:
        return servable.version


@pytest.mark.parametrize(
    ("name", "number"),
    [("1", 1), ("00000123", 123), ("+5", 5), ("-5", -5), ("9223372036854775807", 2**63 - 1),
     ("9223372036854775808", None), ("1.0", None), ("v1", None), ("_tmp.3", None), ("", None),
     ("1_0", None), ("\u0661", None)],
)  # fmt: skip
def test_version_names(name: str, number: int | None) -> None:
    assert parse_version(name) == number


def test_of_two_names_for_a_number_the_last_in_sorted_order_wins(tmp_path: pathlib.Path) -> None:
    for name in ("007", "7", "note.txt"):
        (tmp_path / name).mkdir()
    assert list_versions(str(tmp_path)) == {7: str(tmp_path / "7")}


def test_a_new_version_takes_over_and_the_old_one_ends(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    server = start_server({"m": tmp_path})
    assert version_of_answer(server) == 1
    push(tmp_path, 2)
    wait(
        server,
        lambda: states(server) == {2: State.AVAILABLE, 1: State.END},
        "2 over 1",
    )
    assert version_of_answer(server) == 2
    with pytest.raises(StatusError, match=r"Servable not found for request: Specific\(m, 1\)"):
        version_of_answer(server, version=1)


def test_deleting_the_newest_brings_the_older_back_without_a_gap(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    newest = push(tmp_path, 2)
    server = start_server({"m": tmp_path})
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(version_of_answer(server))

    asker = threading.Thread(target=ask)
    asker.start()
    shutil.rmtree(newest)
    wait(server, lambda: states(server).get(2) is State.END, "2 gone")
    stop.set()
    asker.join()
    assert set(answers) <= {1, 2} and version_of_answer(server) == 1
    assert answers == sorted(answers, reverse=True)  # once back at 1, never 2 again


def test_deleting_all_versions_unloads_and_a_vanished_folder_does_not(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    emptied, vanished = tmp_path / "emptied", tmp_path / "vanished"
    push(emptied, 1)
    push(vanished, 1)
    server = start_server({"m": emptied, "other": vanished})
    # At once: a look in between would find it empty.
    vanished.rename(tmp_path / "elsewhere")
    shutil.rmtree(emptied / "1")
    wait(server, lambda: states(server) == {1: State.END}, "emptied")
    assert states(server, "other") == {1: State.AVAILABLE}
    with pytest.raises(StatusError, match=r"Servable not found for request: Latest\(m\)"):
        version_of_answer(server)


def _truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CORRUPTIONS: dict[str, Callable[[pathlib.Path], object]] = {
    "no saved_model.pb": lambda path: (path / "saved_model.pb").unlink(),
    "truncated saved_model.pb": lambda path: _truncate(path / "saved_model.pb"),
    "empty saved_model.pb": lambda path: (path / "saved_model.pb").write_bytes(b""),
    "no variables": lambda path: shutil.rmtree(path / "variables"),
    "truncated variables": lambda path: _truncate(
        next((path / "variables").glob("*.data-00000-of-00001"))
    ),
    "warm-up that fails": lambda path: _write_bad_warmup(path),
    "warm-up that is no TFRecord": lambda path: _write_warmup(path, b"hello there, not a record"),
}


def _write_warmup(path: pathlib.Path, data: bytes) -> None:
    (path / "assets.extra").mkdir(exist_ok=True)
    (path / "assets.extra" / "tf_serving_warmup_requests").write_bytes(data)


def _write_bad_warmup(path: pathlib.Path) -> None:
    import tensorflow as tf

    _write_warmup(path, b"")
    log = protos.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "nobody"
    file = str(path / "assets.extra" / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(file) as writer:
        writer.write(log.SerializeToString())


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupt_version_takes_no_traffic_and_shows_its_error(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer, corruption: str
) -> None:
    push(tmp_path / "m", 1)
    server = start_server({"m": tmp_path / "m"}, max_load_retries=0)
    broken = push(tmp_path / "aside", 2)
    CORRUPTIONS[corruption](broken)
    broken.rename(tmp_path / "m" / "2")
    wait(server, lambda: states(server).get(2) is State.END, "the failure")
    assert version_of_answer(server) == 1
    with contextlib.closing(GrpcTransport(Address(server.address, "m"))) as transport:
        newest, older = transport.status()
    assert (newest.version, newest.state, older.state) == (2, "END", "AVAILABLE")
    assert newest.error


def test_a_version_that_is_completed_later_is_tried_again(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    """TFX's Pusher shows the folder before saved_model.pb is in it."""
    push(tmp_path / "m", 1)
    server = start_server({"m": tmp_path / "m"}, max_load_retries=0)
    part = push(tmp_path / "aside", 2)
    pb = (part / "saved_model.pb").read_bytes()
    (part / "saved_model.pb").unlink()
    part.rename(tmp_path / "m" / "2")
    wait(server, lambda: states(server).get(2) is State.END, "the failure")
    (tmp_path / "m" / "2" / "saved_model.pb").write_bytes(pb)
    wait(server, lambda: states(server).get(2) is State.AVAILABLE, "the second try")
    wait(server, lambda: states(server).get(1) is State.END, "the swap")


def test_a_plain_file_with_a_number_for_a_name_is_a_version_that_fails(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    server = start_server({"m": tmp_path}, max_load_retries=0)
    (tmp_path / "9").write_text("hello")
    wait(
        server,
        lambda: states(server) == {9: State.END, 1: State.AVAILABLE},
        "the failure",
    )


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ({"latest": 2}, [2, 3]),
        ({"latest": None}, [1, 2, 3]),
        ({"versions": (1, 3, 7)}, [1, 3]),
    ],
    ids=["latest 2", "all", "specific"],
)
def test_policies(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer, policy: dict[str, Any],
    served: list[int],
) -> None:  # fmt: skip
    for version in (1, 2, 3):
        push(tmp_path, version)
    server = start_server({"m": ModelSettings("m", str(tmp_path), **policy)})
    wait(server, lambda: server.models.available() == {"m": served}, "the policy")
    assert version_of_answer(server) == max(served)


def test_requests_under_way_keep_their_version_until_they_are_done(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    server = start_server({"m": tmp_path})
    with server.models.lease("m") as servable:
        push(tmp_path, 2)
        wait(server, lambda: states(server).get(1) is State.UNLOADING, "1 unloading")
        assert version_of_answer(server) == 2
        [y] = servable.signatures["serving_default"].run(X, ["y"])  # still loaded
        assert y.tolist() == [[2.5]]
        assert states(server)[1] is State.UNLOADING
    wait(server, lambda: states(server)[1] is State.END, "1 closed")


def test_startup_refuses_an_empty_folder_and_a_broken_only_version(
    tmp_path: pathlib.Path, push: Push
) -> None:
    def start(folder: pathlib.Path) -> None:
        options = ServerOptions({"m": ModelSettings("m", str(folder))}, port=0, rest_port=None,
                                max_load_retries=0)  # fmt: skip
        with EmbeddedServer(options):
            raise AssertionError("it started")

    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ServerStartError, match="no numbered versions"):
        start(tmp_path / "empty")
    broken = push(tmp_path / "broken", 1)
    _truncate(broken / "saved_model.pb")
    with pytest.raises(errors.ServerStartError, match="version 1 does not load"):
        start(tmp_path / "broken")


def test_a_taken_port_is_an_error(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    server = start_server({"m": tmp_path}, rest_port=0)
    for ports in ({"port": server.port}, {"port": 0, "rest_port": server.rest_port}):
        with pytest.raises(errors.ServerStartError, match="the port is taken"):
            start_server({"m": tmp_path}, **ports)


# Labels and reload.


def config(*models: tuple[str, pathlib.Path, list[int], dict[str, int]]) -> Any:
    result = protos.ModelServerConfig()
    result.model_config_list.SetInParent()
    for name, path, versions, labels in models:
        item = result.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow"
        )
        if versions:
            item.model_version_policy.specific.versions.extend(versions)
        item.version_labels.update(labels)
    return result


def test_reload_moves_labels_and_refuses_what_is_not_available(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    for version in (1, 2):
        push(tmp_path, version)
    server = start_server({"m": ModelSettings("m", str(tmp_path), latest=None)})
    wait(server, lambda: server.models.available() == {"m": [1, 2]}, "both")
    transport = GrpcTransport(Address(server.address, "m"))
    transport.reload(config(("m", tmp_path, [1, 2], {"stable": 1, "canary": 2})))
    assert version_of_answer(server, label="stable") == 1
    assert version_of_answer(server, label="canary") == 2
    with pytest.raises(errors.InvalidRequestError, match="Request to assign label to version 9 of "
                       "model m, which is not currently available for inference"):  # fmt: skip
        transport.reload(config(("m", tmp_path, [1, 2], {"stable": 9})))
    assert version_of_answer(server, label="stable") == 1
    transport.reload(config(("m", tmp_path, [1], {"stable": 1, "canary": 1})))
    assert version_of_answer(server, label="canary") == 1
    wait(server, lambda: states(server)[2] is State.END, "2 unloaded")
    transport.close()


def test_reload_waits_for_new_models_and_drops_those_not_listed(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path / "m", 1)
    push(tmp_path / "n", 5)
    server = start_server({"m": tmp_path / "m"})
    transport = GrpcTransport(Address(server.address, "n"))
    transport.reload(config(("n", tmp_path / "n", [], {"stable": 5})))
    assert [item.state for item in transport.status()] == ["AVAILABLE"]
    wait(server, lambda: server.models.available() == {"n": [5]}, "m dropped")
    transport.close()


def test_reload_with_a_broken_new_model_is_unknown_and_with_none_ends_at_the_deadline(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path / "m", 1)
    broken = push(tmp_path / "broken", 1)
    _truncate(broken / "saved_model.pb")
    (tmp_path / "empty").mkdir()
    server = start_server({"m": tmp_path / "m"}, max_load_retries=0)
    transport = GrpcTransport(Address(server.address, "m", timeout=300.0))
    kept = ("m", tmp_path / "m", [], {})
    with pytest.raises(errors.ServingError, match=r"1 model\(s\) did not become available: "
                       r"\{\{name: b version: 1\} due to error: "):  # fmt: skip
        transport.reload(config(kept, ("b", tmp_path / "broken", [], {})))
    impatient = GrpcTransport(Address(server.address, "m", timeout=0.5))
    with pytest.raises(errors.DeadlineExceededError):
        impatient.reload(config(kept, ("e", tmp_path / "empty", [], {})))
    assert version_of_answer(server) == 1
    transport.reload(config(kept))  # the lock is free again
    transport.close()
    impatient.close()


def test_the_configuration_file_is_read_again_when_it_changes(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    from serving.rollout import ConfigFile

    for version in (1, 2):
        push(tmp_path / "m", version)
    file = ConfigFile(tmp_path / "models.config")
    file.write(config(("m", tmp_path / "m", [1, 2], {"stable": 1})))
    settings = ModelSettings("m", str(tmp_path / "m"), (1, 2), labels={"stable": 1})  # fmt: skip
    server = start_server({"m": settings}, config_file=str(file.path))
    wait(server, lambda: server.models.available() == {"m": [1, 2]}, "both")
    assert version_of_answer(server, label="stable") == 1
    file.path.write_text("this is { no configuration")
    file.write(config(("m", tmp_path / "m", [1, 2], {"stable": 2})))
    wait(server, lambda: version_of_answer(server, label="stable") == 2, "the label")


def test_a_configuration_file_that_appears_after_the_start_is_read(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    """`serve` is told of models.config before the first rollout has written it."""
    from serving.rollout import ConfigFile

    for version in (1, 2):
        push(tmp_path / "m", version)
    file = ConfigFile(tmp_path / "models.config")
    server = start_server({"m": tmp_path / "m"}, config_file=str(file.path))
    assert server.models.available() == {"m": [2]}
    file.write(config(("m", tmp_path / "m", [1, 2], {"stable": 1})))

    def labelled() -> bool:
        with contextlib.suppress(StatusError):
            return version_of_answer(server, label="stable") == 1
        return False

    wait(server, labelled, "the label")
    # An empty file has no models of its own: the one asked for stays, without a label.
    file.path.write_text("")
    wait(server, lambda: not labelled(), "the label gone")
    assert server.models.available()["m"]


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    import datetime
    import ipaddress

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    paths = {}
    now = datetime.datetime.now(datetime.timezone.utc)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])

    of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key

    def issue(name: str, key: Any, subject: Any, is_ca: bool) -> None:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(authority)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([
                x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]), critical=False)
            # Python 3.13 is strict: RFC 5280 wants these three.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(of_issuer(authority_key.public_key()), False)
            .add_extension(x509.KeyUsage(
                digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca,
                content_commitment=False, key_encipherment=False, data_encipherment=False,
                key_agreement=False, encipher_only=False, decipher_only=False,
            ), critical=True)
        )  # fmt: skip
        pem = builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / f"{name}.pem").write_bytes(pem)
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
        paths[name], paths[f"{name}.key"] = (str(folder / f"{name}{e}") for e in (".pem", ".key"))

    issue("ca", authority_key, authority, True)
    for name in ("server", "client"):
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issue(name, ec.generate_private_key(ec.SECP256R1()), subject, False)
    return paths


@pytest.mark.parametrize("rest", [False, True], ids=["gRPC", "REST"])
@pytest.mark.parametrize("mutual", [False, True], ids=["TLS", "mutual TLS"])
def test_tls(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer, certificates: dict[str, str],
    mutual: bool, rest: bool,
) -> None:  # fmt: skip
    from serving.client import Tls
    from serving.standin.settings import TlsFiles

    push(tmp_path, 1)
    server = start_server(
        {"m": tmp_path}, rest_port=0,
        tls=TlsFiles(certificates["server"], certificates["server.key"],
                     certificates["ca"] if mutual else None),
    )  # fmt: skip
    target = server.rest_address if rest else server.address
    assert target is not None

    def ask(tls: Tls | None) -> str:
        with ReconstructionClient(
            target, model="m", rest=rest, tls=tls, retries=0, timeout=300
        ) as client:
            return client.status()[0].state

    bare = Tls(certificates["ca"])
    with pytest.raises(errors.ServingError):
        ask(None)
    if mutual:
        with pytest.raises(errors.ServerUnavailableError):
            ask(bare)
        bare = Tls(certificates["ca"], certificates["client"], certificates["client.key"])
    assert ask(bare) == "AVAILABLE"


def test_only_loopback_is_bound_by_default(
    tmp_path: pathlib.Path, push: Push, start_server: StartServer
) -> None:
    push(tmp_path, 1)
    server = start_server({"m": tmp_path}, rest_port=0)
    ports = {f"{server.port:04X}", f"{server.rest_port:04X}"}
    bound = {
        line.split()[1].split(":")[0]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if os.path.exists(table)
        for line in pathlib.Path(table).read_text().splitlines()[1:]
        if line.split()[1].split(":")[1] in ports and line.split()[3] == "0A"
    }
    assert bound  # 127.0.0.1, as IPv4 or mapped into IPv6
    assert bound <= {"0100007F", "0000000000000000FFFF00000100007F"}
