"""The embedded server: TensorFlow Serving's protocol, TensorFlow alone needed.

A request's way: :mod:`~serving.server.grpc_service` or
:mod:`~serving.server.rest` reads it, :mod:`~serving.server.inference` says
what it means, :mod:`~serving.server.manager` lends the version,
:mod:`~serving.server.batching` may gather it with others, and
:mod:`~serving.server.servable` runs the graph. :mod:`~serving.server.runtime`
starts and stops it all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.server.config import ModelSettings
    from serving.server.options import ServerOptions, TlsFiles
    from serving.server.runtime import EmbeddedServer

__all__ = ["EmbeddedServer", "ModelSettings", "ServerOptions", "TlsFiles"]

_HOMES = {
    "EmbeddedServer": "serving.server.runtime",
    "ModelSettings": "serving.server.config",
    "ServerOptions": "serving.server.options",
    "TlsFiles": "serving.server.options",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
