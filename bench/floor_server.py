"""The floor of a unary call: an empty grpc.aio handler with mTLS, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from hyperfactory.v1 import factory_service_pb2 as fp
from wire.channels import SERVER_OPTIONS, server_credentials
from wire.identity import IdentityFile

SERVICE = "hyperfactory.v1.FactoryService"


async def _empty(_request: fp.GetAgentRequest, _context: Any) -> fp.GetAgentResponse:
    return fp.GetAgentResponse()


async def serve(directory: Path) -> None:
    """Serve GetAgent, emptily, until cancelled; print the port."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.unary_unary_rpc_method_handler(
        _empty,
        request_deserializer=fp.GetAgentRequest.FromString,
        response_serializer=fp.GetAgentResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"GetAgent": handler}),))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(IdentityFile(directory).current))
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    try:
        await asyncio.Event().wait()
    finally:
        await server.stop(None)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
