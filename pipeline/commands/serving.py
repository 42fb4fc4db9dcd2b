"""``mnist-ae serve``, ``play``, ``status`` and ``rollout``: pushed models, their versions."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import connection, options
from pipeline.commands.group import Group, command
from pipeline.commands.options import COUNT, PORT, POSITIVE, Integer, option
from serving import locate
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.locate import ModelFolder
    from serving.rollout import Rollout

    Labels = contextlib.AbstractContextManager[tuple[Rollout, ModelFolder, str]]


@command()
@click.argument("model", required=False, metavar="[MODEL_OR_FOLDER]")
@options.root
@option("--port", "gRPC port; 0 is any free one", type=PORT, default=8500)
@option("--rest-port", "REST port; 0 is any free one", type=PORT, default=8501)
@option("--host", "address to listen on; 0.0.0.0 for the whole network", default="127.0.0.1")
@option(
    "--backend",
    "who serves; auto: tensorflow_model_server on the PATH, else Docker, else embedded",
    type=click.Choice(["auto", "docker", "binary", "embedded"]),
    default="auto",
)
@option(
    "--batching FILE",
    "gather small requests: TensorFlow Serving's batching parameters (docker, binary)",
)
@option("--tls-cert FILE", "certificate chain of the server, PEM")
@option("--tls-key FILE", "its private key, PEM")
@option("--tls-client-ca FILE", "let in only clients with a certificate of this CA")
@option("--max-message-mb", "largest request taken, in MiB (embedded)", type=COUNT, default=64)
@option(
    "--drain-seconds",
    "time for requests under way when stopping, in seconds (embedded)",
    to="drain_timeout",
    type=POSITIVE,
    default=30.0,
)
@option(
    "--load-retries N",
    "further tries after a failed load, a second apart",
    to="max_load_retries",
    type=Integer(0, 9),
    default=2,
)
def serve(
    model: str | None,
    root: str,
    port: int,
    rest_port: int,
    host: str,
    backend: str,
    batching: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    max_message_mb: int,
    **embedded: Any,
) -> int:
    """Serve a model until SIGTERM or Ctrl-C; says `ready` when it answers.

    MODEL_OR_FOLDER is a pushed model's name, or any folder with numbered SavedModel versions;
    default: the most recently pushed model.
    """
    import logging

    from pipeline import console, runs
    from serving import launcher

    folder = locate.find(model, pathlib.Path(root))
    config = locate.config_path(pathlib.Path(root))
    pushed_here = folder.path.parent == config.absolute().parent
    embedded["max_message_bytes"] = max_message_mb * 2**20
    embedded["index_of"] = functools.partial(runs.index_of, root)
    if bool(tls_cert) != bool(tls_key) or (tls_client_ca and not tls_cert):
        raise InputError("TLS needs --tls-cert and --tls-key together")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    console.quieten()
    if tls_cert and tls_key:
        from serving.standin.settings import TlsFiles

        embedded["tls"] = TlsFiles(tls_cert, tls_key, tls_client_ca)
    plan = launcher.Plan(
        folder,
        config if pushed_here and folder.version is None else None,
        host,
        port,
        rest_port,
        pathlib.Path(batching) if batching else None,
        embedded,
    )
    return launcher.serve(plan, backend, lambda text: print(text, flush=True))


@command()
@options.together(*connection.OPTIONS)
@option("--port", "port of the page, on this machine; 0 is any free one", type=PORT, default=8600)
def play(root: str, model: str | None, port: int, **others: Any) -> None:
    """Offer a page to try a model on until SIGTERM or Ctrl-C; says `ready` when it answers.

    Draw a digit and see what the model makes of it. `mnist-ae serve` with the embedded server
    offers the same page beside REST.
    """
    import threading

    from pipeline import runs
    from serving import launcher
    from serving.play import Proxy

    ended = threading.Event()
    with (
        connection.client(root, model, **others) as client,
        Proxy(client, port, functools.partial(runs.index_of, root)) as proxy,
        launcher.on_signals(ended.set),
    ):
        print(
            f"{client.model}, version {client.answering()}\n  page {proxy.url}\nready", flush=True
        )
        ended.wait()


@command()
@options.together(*connection.OPTIONS)
def status(root: str, model: str | None, target: str | None, **others: Any) -> None:
    """Show the versions of a model, on a server or in its folder."""
    if target is None:
        folder = locate.find(model, pathlib.Path(root))
        print(f"{folder.name} in {folder.path}")
        for version in reversed(folder.versions):
            print(f"  version {version}")
        return
    with connection.client(root, model, target, **others) as client:
        found = client.status()
    print(f"{locate.served_name(model, pathlib.Path(root))} on {target}")
    for item in found:
        print(f"  version {item.version}: {item.state}" + (f" ({item.error})" * bool(item.error)))


@click.group(cls=Group, subcommand_metavar="ACTION")
def rollout() -> None:
    """Move the version labels stable and canary."""


@contextlib.contextmanager
def _rollout(
    root: str,
    model: str | None,
    target: str | None,
    config: str | None,
    base_path: str | None,
    keep: int,
    timeout: float,
) -> Iterator[tuple[Rollout, ModelFolder, str]]:
    """What moves the labels, the model, and where they are."""
    from serving.rollout import ConfigFile, Rollout

    folder = locate.find(model, pathlib.Path(root))
    path = locate.config_path(pathlib.Path(root))
    if config:
        path = pathlib.Path(config)
    elif folder.path.parent != path.absolute().parent:
        path = folder.path.parent / locate.CONFIG_FILE
    moving = Rollout(
        folder, ConfigFile(path), target=target, keep=keep, timeout=timeout, base_path=base_path
    )
    with contextlib.closing(moving):
        yield moving, folder, f"{target} and {path}" if target else f"{path}"


_labels = options.gathered(
    "labels",
    _rollout,
    options.root,
    options.model(),
    option("--target HOST:PORT", "a live server's gRPC port"),
    option(
        "--config FILE", "where the labels are written", show_default="<root>/serving/models.config"
    ),
    option("--base-path PATH", "the model's folder as the server sees it (in a container)"),
    option("--keep", "versions that stay loaded", type=COUNT, default=3),
    option("--timeout", "seconds for a version to become available", type=POSITIVE, default=60.0),
)


def _move(labels: Labels, how: Callable[[Rollout], Any]) -> None:
    """Moves the labels, and says where they are then."""
    with labels as (rollout, folder, where):
        moved = how(rollout).as_dict()
    text = ", ".join(f"{label} {version}" for label, version in moved.items())
    print(f"{folder.name}: {text} ({where})")


@rollout.command()
@click.argument("version", type=int)
@_labels
def canary(version: int, labels: Labels) -> None:
    """Load a version beside the stable one."""
    _move(labels, lambda rollout: rollout.canary(version))


@rollout.command()
@_labels
def promote(labels: Labels) -> None:
    """Make the canary the stable version."""
    _move(labels, lambda rollout: rollout.promote())


@rollout.command()
@_labels
def rollback(labels: Labels) -> None:
    """Withdraw the canary, or return to the previous version."""
    _move(labels, lambda rollout: rollout.rollback())


@rollout.command("list")
@_labels
def list_(labels: Labels) -> int:
    """Show versions, labels and states; name every server that does not do what the file says.

    The exit code is 1 where there is one.
    """
    with labels as (rollout, folder, _):
        replicas = rollout.replicas()
        astray = rollout.disagreements(replicas)
        known = rollout.labels.as_dict() if rollout.labels is not None else {}
    print(f"{folder.name} in {folder.path}")
    states = {number for replica in replicas for number in replica.states}
    for version in sorted({*folder.versions, *states}, reverse=True):
        words = [label for label, number in known.items() if number == version]
        said = [r.states[version].state for r in replicas if version in r.states]
        words += sorted(set(said))
        print(f"  {version}" + (f"  {', '.join(words)}" if words else ""))
    if not known:
        print("  no labels yet; begin with `mnist-ae rollout canary VERSION`")
    for address, why in sorted(astray.items()):
        print(f"  {address} does not follow {rollout.path}: {why}")
    return int(bool(astray))
