"""ML Metadata's gRPC service over its C++ store, which PyPI has without a server."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from typing import Any

import grpc
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store
from ml_metadata.proto import metadata_store_pb2

CODES = {code.value[0]: code for code in grpc.StatusCode}


class Service(grpc.GenericRpcHandler):
    """Hands every call, as bytes, to the store's function of its name."""

    def __init__(self, config: metadata_store_pb2.ConnectionConfig):
        options = metadata_store_pb2.MigrationOptions(enable_upgrade_migration=True)
        self._store = metadata_store.CreateMetadataStore(
            config.SerializeToString(), options.SerializeToString()
        )
        # The store is one connection.
        self._lock = threading.Lock()

    def service(self, handler_call_details: Any) -> Any:
        function = getattr(metadata_store, handler_call_details.method.rpartition("/")[2], None)
        if function is None:
            return None

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                response, message, code = function(self._store, request)
            if code:
                context.abort(CODES[code], message.decode())
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


def main() -> None:
    config = metadata_store_pb2.ConnectionConfig()
    config.mysql.host = os.environ["MYSQL_HOST"]
    config.mysql.port = int(os.environ["MYSQL_PORT"])
    config.mysql.database = os.environ["MYSQL_DATABASE"]
    config.mysql.user = os.environ["DBCONFIG_USER"]
    config.mysql.password = os.environ["DBCONFIG_PASSWORD"]
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(8),
        handlers=[Service(config)],
        options=[("grpc.max_receive_message_length", 100 * 2**20)],
    )
    server.add_insecure_port("0.0.0.0:8080")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
