"""One loaded SavedModel: a TF1 session, its signatures, and who is using it.

A v1 Session runs the graph as TensorFlow Serving does, with its error codes
and texts; ``tf.saved_model.load`` would hide models that the real server
cannot serve (see docs/serving.md).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving import protos, quiet, wire
from serving.standin.status import Code, StatusError, from_exception, invalid_argument

tf = quiet.import_tensorflow()
_CallableOptions = importlib.import_module("tensorflow.core.protobuf.config_pb2").CallableOptions

# Distinct output_filters a client can make us compile before old ones go.
_MAX_CALLABLES = 32


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a signature.

    Attributes:
      name: In the graph, such as ``"images:0"``.
      dtype: TensorFlow's DataType number.
      shape: None where the rank is unknown; -1 for unknown sizes.
    """

    name: str
    dtype: int
    shape: tuple[int, ...] | None


class Signature:
    """One entry point of a loaded model.

    Attributes:
      inputs: Alias to tensor, sorted.
      outputs: Alias to tensor, sorted.
    """

    def __init__(self, name: str, definition: Any, session: Any) -> None:
        self.name = name
        self.inputs = _tensor_infos(definition.inputs)
        self.outputs = _tensor_infos(definition.outputs)
        self.output_aliases = tuple(self.outputs)
        self._session = session
        self._callable = functools.lru_cache(_MAX_CALLABLES)(self._make_callable)

    @property
    def compiled(self) -> int:
        """How many choices of outputs are held compiled."""
        return self._callable.cache_info().currsize

    def run(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], aliases: Sequence[str]
    ) -> list[np.ndarray[Any, Any]]:
        """Runs the graph once, in the calling thread.

        Args:
          inputs: An array for each of :attr:`inputs`, already of its type.
          aliases: The outputs to compute.

        Returns:
          One array an alias, in that order.

        Raises:
          StatusError: With the runtime's code and text.
        """
        try:
            function = self._callable(tuple(aliases))
            return function(*[inputs[alias] for alias in self.inputs])
        except UnicodeDecodeError as error:
            # The runtime's message quotes the bad input, which was no text.
            raise invalid_argument(error.object.decode("utf-8", "replace")) from None
        except Exception as error:
            raise from_exception(error) from None

    def _make_callable(self, aliases: tuple[str, ...]) -> Callable[..., list[Any]]:
        options = _CallableOptions()
        options.feed.extend(info.name for info in self.inputs.values())
        options.fetch.extend(self.outputs[alias].name for alias in aliases)
        # Run the graph's nodes in the thread that asks: a hand-over to a pool
        # costs more than a small model does. Kernels still use all cores.
        options.run_options.inter_op_thread_pool = -1
        return self._session._make_callable_from_options(options)

    def close(self) -> None:
        """Releases the compiled callables; they hold the session."""
        self._callable.cache_clear()


def _tensor_infos(definitions: Any) -> dict[str, TensorInfo]:
    return {
        alias: TensorInfo(info.name, info.dtype, wire.shape_of(info.tensor_shape))
        for alias, info in sorted(definitions.items())
    }


class Servable:
    """A version of a model, loaded. Counts its users and closes after the last.

    Whoever acquired it may use it as a context manager, which releases it.

    Attributes:
      signatures: The entry points by key, initialisation ones (``__...``) too.
      signature_defs: ``SignatureDefMap`` of saved_model.pb, serialised, whole.

    Raises:
      StatusError: It does not load.
    """

    def __init__(self, name: str, version: int, path: str) -> None:
        self.name = name
        self.version = version
        self.path = path
        self._lock = threading.Lock()
        # The one who loaded it is the first user.
        self._users = 1
        self._on_closed: Callable[[], None] = lambda: None
        self._session, definitions = _load(path)
        known = protos.SignatureDefMap()
        for key, definition in definitions.items():
            known.signature_def[key].ParseFromString(definition.SerializeToString())
        self.signature_defs: bytes = known.SerializeToString(deterministic=True)
        self.signatures = {
            key: Signature(key, definition, self._session)
            for key, definition in sorted(known.signature_def.items())
        }

    def acquire(self) -> bool:
        """Counts one more user; False where the last one has gone."""
        with self._lock:
            if self._users:
                self._users += 1
            return self._users > 0

    def release(self) -> None:
        """Counts one user less; after the last one it closes, in that one's thread."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        for signature in self.signatures.values():
            signature.close()
        self._session.close()
        self._on_closed()

    def __enter__(self) -> Servable:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def retire(self, on_closed: Callable[[], None] = lambda: None) -> None:
        """Closes once the present users are done, and calls ``on_closed`` then."""
        self._on_closed = on_closed
        self.release()


def _load(path: str) -> tuple[Any, Any]:
    """Loads a SavedModel's ``serve`` graph into a session of its own."""
    if not any(
        os.path.isfile(os.path.join(path, f"saved_model.{form}")) for form in ("pb", "pbtxt")
    ):
        raise StatusError(
            Code.NOT_FOUND,
            f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {path}",
        )
    graph = tf.Graph()
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    session = tf.compat.v1.Session(graph=graph, config=config)
    try:
        with graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
        return session, meta_graph.signature_def
    except BaseException as error:
        session.close()
        # What Python's loader raises in each case.
        if isinstance(error, OSError):  # saved_model.pb does not parse
            text = f"Read less bytes than requested: {path}: {error}"
            raise StatusError(Code.OUT_OF_RANGE, text) from None
        if isinstance(error, ValueError):
            # The real server makes a version without variables AVAILABLE and fails
            # every request; it is refused here. docs/serving.md lists the deviation.
            text = f"Could not find the variables of the SavedModel at {path}: {error}"
            raise StatusError(Code.NOT_FOUND, text) from None
        if isinstance(error, RuntimeError):  # no graph with the tag "serve"
            raise StatusError(Code.NOT_FOUND, str(error)) from None
        if isinstance(error, Exception):
            raise from_exception(error) from None
        raise
