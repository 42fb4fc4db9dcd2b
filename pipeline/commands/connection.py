"""The options by which a command finds the model that it asks: on a server, or in its folder."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING

import click

from pipeline.commands import options

if TYPE_CHECKING:
    from serving.client import ReconstructionClient


@dataclasses.dataclass(frozen=True)
class Connection:
    """The model that a command asks.

    Attributes:
      root: Folder above the pushed models' folder.
      model: A pushed model's name or a folder; None is the most recently pushed.
      target: ``host:port`` of a server; None is the pushed folder itself.
      rest: Speaks REST instead of gRPC.
      version: A version number; None is the latest.
      label: A version label of the server.
      timeout: Seconds for a request.
      tls_ca: PEM file of the authority that signed the server's certificate.
      tls_cert: PEM file of the client's certificate.
      tls_key: PEM file of its private key.
    """

    root: str
    model: str | None
    target: str | None
    rest: bool
    version: int | None
    label: str | None
    timeout: float
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise click.UsageError("--version and --label exclude each other")

    def open(self) -> tuple[ReconstructionClient, str]:
        """The client, and the model's name.

        Raises:
          InputError: No such model, or options that do not go together.
        """
        return self._to_folder() if self.target is None else self._to_server(self.target)

    def _to_folder(self) -> tuple[ReconstructionClient, str]:
        from pipeline import console
        from serving import locate
        from serving.client import ReconstructionClient
        from serving.errors import InputError

        if self.label or self.rest:
            raise InputError("--label and --rest need a server; give --target HOST:PORT")
        folder = locate.find(self.model, pathlib.Path(self.root))
        version = folder.latest if self.version is None else self.version
        path = folder.version_path(version)
        console.quieten()
        client = ReconstructionClient.from_folder(str(path), model=folder.name, version=version)
        return client, folder.name

    def _to_server(self, target: str) -> tuple[ReconstructionClient, str]:
        from serving.client import ReconstructionClient, Tls
        from serving.errors import InputError

        name = self._served_name()
        if (self.tls_cert or self.tls_key) and not self.tls_ca:
            raise InputError("--tls-cert and --tls-key need --tls-ca")
        tls = Tls(self.tls_ca, self.tls_cert, self.tls_key) if self.tls_ca else None
        client = ReconstructionClient(
            target,
            model=name,
            version=self.version,
            label=self.label,
            timeout=self.timeout,
            rest=self.rest,
            tls=tls,
        )
        return client, name

    def _served_name(self) -> str:
        from serving import locate
        from serving.errors import InputError

        root = pathlib.Path(self.root)
        if self.model is None:
            pushed = locate.pushed_models(root)
            if not pushed:
                raise InputError("which model of the server? give --model NAME")
            return pushed[-1].name
        return locate.find(self.model, root).name if os.sep in self.model else self.model


asked = options.gathered(
    "connection",
    Connection,
    options.root,
    options.model(),
    click.option(
        "--target",
        metavar="HOST:PORT",
        help="ask a running server; without it the pushed folder is used directly",
    ),
    click.option("--rest", is_flag=True, help="the target is a REST port"),
    click.option("--version", type=int, show_default="the latest", help="a version number"),
    click.option("--label", help="a version label of the server, such as stable"),
    click.option("--timeout", type=options.POSITIVE, default=10.0, help="seconds for a request"),
    click.option("--tls-ca", metavar="FILE", help="CA of the server's certificate, PEM"),
    click.option("--tls-cert", metavar="FILE", help="the client's certificate, PEM"),
    click.option("--tls-key", metavar="FILE", help="its private key, PEM"),
)
