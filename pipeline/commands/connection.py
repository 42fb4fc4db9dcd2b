"""The model that a command asks: on a server, or straight from its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.commands import options
from pipeline.commands.options import POSITIVE, Number, flag, option
from serving import locate
from serving.errors import InputError

if TYPE_CHECKING:
    from serving.client import ReconstructionClient
    from serving.locate import ModelFolder


def in_folder(folder: ModelFolder, **more: Any) -> ReconstructionClient:
    """A client that runs a pushed version in this process, with more of its options."""
    from pipeline import console
    from serving.client import ReconstructionClient

    console.quieten()
    path = str(folder.version_path(folder.latest))
    return ReconstructionClient.from_folder(path, model=folder.name, version=folder.latest, **more)


@contextlib.contextmanager
def client(
    root: str,
    model: str | None,
    target: str | None,
    rest: bool,
    version: int | None,
    label: str | None,
    timeout: float,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    sample_fraction: float = 0.0,
    sample_dir: str | None = None,
) -> Iterator[ReconstructionClient]:
    """The client that the options ask for.

    Raises:
      InputError: No such model, or options that do not go together.
    """
    from serving.client import ReconstructionClient, Tls

    kept = sample_dir or str(locate.samples_path(pathlib.Path(root)))
    sampled: dict[str, Any] = {"sample_dir": kept, "sample_fraction": sample_fraction}
    if target is None:
        if label or rest:
            raise InputError("--label and --rest need a server; give --target HOST:PORT")
        folder = locate.find(model, pathlib.Path(root))
        chosen = in_folder(
            folder if version is None else dataclasses.replace(folder, version=version), **sampled
        )
    else:
        name = locate.served_name(model, pathlib.Path(root))
        if (tls_cert or tls_key) and not tls_ca:
            raise InputError("--tls-cert and --tls-key need --tls-ca")
        tls = Tls(tls_ca, tls_cert, tls_key) if tls_ca else None
        chosen = ReconstructionClient(
            target,
            model=name,
            version=version,
            label=label,
            timeout=timeout,
            rest=rest,
            tls=tls,
            **sampled,
        )
    with chosen:
        yield chosen


OPTIONS = (
    options.root,
    options.model(),
    option(
        "--target HOST:PORT", "ask a running server; without it the pushed folder is used directly"
    ),
    flag("--rest", "the target is a REST port"),
    option("--version", "a version number", type=int, show_default="the latest"),
    option("--label", "a version label of the server, such as stable"),
    option("--timeout", "seconds for a request", type=POSITIVE, default=10.0),
    option("--tls-ca FILE", "CA of the server's certificate, PEM"),
    option("--tls-cert FILE", "the client's certificate, PEM"),
    option("--tls-key FILE", "its private key, PEM"),
)
_SAMPLING = (
    option(
        "--sample-fraction FRACTION",
        "keep this fraction of the images sent for retraining, 0 to 1",
        type=Number(0, 1),
        default=0.0,
    ),
    option(
        "--sample-dir DIR",
        "where they go; `watch` looks in the default",
        show_default="<root>/samples",
    ),
)
# The function gets ``connection``: with it, a ReconstructionClient. That of commands which send
# images keeps some for retraining.
asked = options.gathered("connection", client, *OPTIONS)
asked_about_images = options.gathered("connection", client, *OPTIONS, *_SAMPLING)
