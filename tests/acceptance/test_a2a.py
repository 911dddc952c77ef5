"""A2A with the official client, through the gateway: cards, messages, streams, lists, cancellation, refusals."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from running import ROOT, Running, request_id

from hyperfactory.v1 import profile_service_pb2, types_pb2
from lf.a2a.v1 import a2a_pb2, a2a_pb2_grpc

pytestmark = pytest.mark.timeout(180)
PEER = Path(__file__).with_name("a2a_peer.py")
PEER_WITHIN_S = 90.0
CALL_WITHIN_S = 20.0
VERSION = ("a2a-version", "1.0")


SCRIPT = {
    "kind": "scripted",
    "turns": [
        {"expect": {"equals": "I am Ada"}, "reply": {"text": "Hello Ada. " * 12}},
        {"expect": {"equals": "Who am I?"}, "reply": {"text": "You are Ada."}},
    ],
}


@pytest.fixture
async def pair(client):
    """A quick agent, one that waits for what does not come, and one for which a model answers."""
    name = f"ada-{request_id()[:8]}"
    spec = types_pb2.ProfileSpec()
    spec.config.update({"model": SCRIPT})
    profile = types_pb2.Profile(name=name, spec=spec)
    request = profile_service_pb2.CreateProfileRequest(request_id=request_id(), profile=profile)
    await client.profiles.CreateProfile(request, metadata=client.metadata)
    profiles = {"quick": "generic", "slow": "reviewer", "talker": name}
    members = [{"name": member, "profile": of} for member, of in profiles.items()]
    made = await client.assemble(name="a2a", members=members, context={})
    yield {agent.name: agent.id for agent in made.agents}
    await client.disband(made.id)


async def card_of(client: Any, agent: str) -> a2a_pb2.AgentCard:
    stub = a2a_pb2_grpc.A2AServiceStub(client.channel)
    request = a2a_pb2.GetExtendedAgentCardRequest(tenant=agent)
    metadata = [*client.metadata, VERSION]
    return await stub.GetExtendedAgentCard(request, timeout=CALL_WITHIN_S, metadata=metadata)


async def peer(running: Running, *arguments: Path) -> dict[str, Any]:
    """What the official client saw."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PEER), str(running.home / "client.json"), *map(str, arguments)),
        cwd=ROOT / "tests",  # nothing of ours is importable there
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PEER_WITHIN_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    assert process.returncode == 0, err.decode()
    seen: dict[str, Any] = json.loads(out)
    return seen


async def test_the_official_client_sends_streams_lists_and_cancels(running, client, pair, tmp_path):
    from google.protobuf.json_format import MessageToJson

    files = []
    for name in ("quick", "slow", "talker"):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(MessageToJson(await card_of(client, pair[name])))
    seen = await peer(running, *files)

    sent = seen["sent"]
    assert sent["status"]["state"] == "TASK_STATE_COMPLETED"
    assert sent["contextId"] == "talk-1"
    echoed = sent["artifacts"][0]["parts"][-1]["data"]
    assert echoed["agent"] == "quick"
    assert (echoed["echo"]["text"], echoed["echo"]["n"]) == ("hello", 7)
    assert sent["history"][0]["messageId"] == "m-1"
    assert [sorted(part.keys() & {"text", "data"}) for part in sent["history"][0]["parts"]] == [
        ["text"],
        ["data"],
    ]
    assert seen["same"]
    assert seen["got"]["id"] == sent["id"]
    assert "history" not in seen["got"]

    kinds = [next(iter(response)) for response in seen["streamed"]]
    assert kinds[0] == "task"
    assert kinds[-2:] == ["artifactUpdate", "statusUpdate"]
    steps = [r["statusUpdate"]["status"]["state"] for r in seen["streamed"] if "statusUpdate" in r]
    assert steps == ["TASK_STATE_WORKING", "TASK_STATE_COMPLETED"]

    assert (seen["begun"], seen["subscribed"]) == ("TASK_STATE_WORKING", True)
    assert (seen["cancelled"], seen["last"]) == ("TASK_STATE_CANCELED", "TASK_STATE_CANCELED")
    streamed = seen["streamed"][0]["task"]["id"]
    assert seen["listed"] == [streamed, sent["id"]]
    assert seen["total"] == 2
    assert seen["of_context"] == [sent["id"]]
    assert seen["extended"].endswith("/quick")
    assert seen["refused"] == {
        "push": "PushNotificationNotSupportedError",
        "unknown": "TaskNotFoundError",
        "ended": "TaskNotCancelableError",
        "subscribe": "UnsupportedOperationError",
        "raw": "ContentTypeNotSupportedError",
        "continued": "UnsupportedOperationError",
        "modes": "ContentTypeNotSupportedError",
        "config": "PushNotificationNotSupportedError",
    }
    assert seen["wrong"] == [
        ["message.message_id", "message.parts[0]"],
        ["history_length", "page_size"],
        ["page_token"],
        ["page_token"],
        ["history_length"],
    ]
    assert seen["newer"] == [1]
    check_talk(seen["talk"])


def check_talk(talk: dict[str, Any]) -> None:
    """An answer in pieces, a second one that knows the first, and a third that the script does not have."""
    kinds, cost = talk["kinds"], talk["second"]["metadata"]
    assert (kinds[0], kinds[-1]) == ("task", "status_update")
    assert kinds.count("artifact_update") >= 3
    assert talk["states"] == ["TASK_STATE_COMPLETED"]
    assert (talk["folded"], talk["last_chunk"]) == ("Hello Ada. " * 12, True)
    [artifact] = talk["second"]["artifacts"]
    assert [part["text"] for part in artifact["parts"]] == ["You are Ada."]
    assert cost["finishReason"] == artifact["metadata"]["finishReason"] == "stop"
    assert cost["usage"]["inputTokens"] > cost["usage"]["outputTokens"] > 0
    assert talk["third"]["state"] == "TASK_STATE_FAILED"
    assert "has 2 turns" in talk["third"]["message"]["parts"][0]["text"]
    assert talk["failed"]


async def test_a_card_says_what_the_agent_is_and_can(client, pair):
    card = await card_of(client, pair["quick"])
    async with asyncio.timeout(CALL_WITHIN_S):
        while len(card.skills) == 1:  # what an agent offers is known a moment after it is READY
            await asyncio.sleep(0.05)
            card = await card_of(client, pair["quick"])
    [interface] = card.supported_interfaces
    assert (interface.protocol_binding, interface.tenant) == ("GRPC", pair["quick"])
    assert interface.protocol_version == "1.0"
    assert card.capabilities.streaming
    assert not card.capabilities.push_notifications
    assert {"task", "read_file", "memory_search"} <= {skill.id for skill in card.skills}
    assert all(skill.name and skill.description and skill.tags for skill in card.skills)
    assert set(card.security_requirements[0].schemes) == {"mtls", "bearer"} == set(card.security_schemes)


@pytest.mark.parametrize(
    ("metadata", "token", "code", "reason"),
    [
        ((), True, grpc.StatusCode.FAILED_PRECONDITION, b"VERSION_NOT_SUPPORTED"),
        ((("a2a-version", "0.3"),), True, grpc.StatusCode.FAILED_PRECONDITION, b"VERSION_NOT_SUPPORTED"),
        ((("a2a-version", "1.1"),), True, grpc.StatusCode.FAILED_PRECONDITION, b"VERSION_NOT_SUPPORTED"),
        ((VERSION,), False, grpc.StatusCode.UNAUTHENTICATED, b"TOKEN_MISSING"),
    ],
)
async def test_who_speaks_another_version_or_shows_no_token_is_refused(
    client, pair, metadata, token, code, reason
):
    stub = a2a_pb2_grpc.A2AServiceStub(client.channel)
    request = a2a_pb2.GetExtendedAgentCardRequest(tenant=pair["quick"])
    shown = [*metadata, *(client.metadata if token else [])]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetExtendedAgentCard(request, timeout=CALL_WITHIN_S, metadata=shown)
    assert refused.value.code() is code
    assert any(reason in value for key, value in refused.value.trailing_metadata() if key.endswith("-bin"))


async def test_the_card_lies_where_clients_look_for_it(proxy_url, client, pair):
    from google.protobuf.json_format import Parse

    async with aiohttp.ClientSession() as session:
        path = f"{proxy_url}/agents/{pair['quick']}/.well-known/agent-card.json"
        async with session.get(path) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            card = Parse(await answer.text(), a2a_pb2.AgentCard())
            mark = answer.headers["ETag"]
        async with asyncio.timeout(CALL_WITHIN_S):
            while True:  # what an agent offers is known a moment after it is READY, and changes its card
                async with session.get(path, headers={"If-None-Match": mark}) as same:
                    if same.status == 304:
                        break
                    mark = same.headers["ETag"]
        assert card.supported_interfaces == (await card_of(client, pair["quick"])).supported_interfaces
        async with session.get(f"{proxy_url}/agents/a-none/.well-known/agent-card.json") as unknown:
            assert unknown.status == 404
