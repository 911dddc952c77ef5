"""What the proxy says when it gets no answer: a sentence, without a library's objects in it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from factory_cli.client import read_client_file
from factory_cli.failures import NotConnectedError
from factory_cli.proxying import cause_of, listening


async def test_a_factory_that_is_not_there_is_named_in_a_sentence(crews, tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        client = dataclasses.replace(read_client_file(tmp_path / "client.json"), endpoint=f"127.0.0.1:{port}")
        with pytest.raises(NotConnectedError, match=f"^cannot connect to 127.0.0.1:{port}: ") as caught:
            async with listening(client, 0):
                raise AssertionError("nobody is there")
    assert "object at" not in str(caught.value)
    assert cause_of(TimeoutError()) == "it did not answer in time"
