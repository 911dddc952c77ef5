"""Chat as anybody's programs speak it: the official openai client, through the gateway, a crew as its models."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import openai
import pytest
from running import Client, request_id

from hyperfactory.v1 import crew_service_pb2, factory_service_pb2, profile_service_pb2, types_pb2

pytestmark = pytest.mark.timeout(120)
GONE_WITHIN_S = 20.0
SCRIPT = {
    "kind": "scripted",
    "turns": [
        {
            "expect": {"contains": "write"},
            "reply": {
                "text": "Writing. ",
                "tool_calls": [{"name": "write_file", "arguments": {"path": "a.txt", "content": "hello"}}],
            },
        },
        {"expect": {"role": "tool", "contains": "wrote 5 bytes"}, "reply": {"text": "It is done now."}},
        {
            "expect": {"contains": "weather"},
            "reply": {"tool_calls": [{"name": "weather", "arguments": {"city": "Bern"}}]},
        },
        {"expect": {"role": "tool", "equals": "rain"}, "reply": {"text": "Take an umbrella."}},
        {
            "expect": {"contains": "sleep"},
            "reply": {
                "text": "Sleeping.",
                "tool_calls": [{"name": "run_python", "arguments": {"code": "import time; time.sleep(50)"}}],
            },
        },
        {
            "expect": {"contains": "break"},
            "reply": {"text": "Breaking.", "tool_calls": [{"name": "list_files", "arguments": {}}]},
        },
    ],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Says how it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture
async def models(proxy_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client."""
    async with openai.AsyncOpenAI(
        base_url=f"{proxy_url}/v1", api_key="none", max_retries=0, timeout=30
    ) as client:
        yield client


@pytest.fixture
async def talker(client: Client) -> AsyncIterator[Any]:
    """A crew of one whose model is scripted."""
    name = f"talker-{request_id()[:8]}"
    spec = types_pb2.ProfileSpec()
    spec.config.update({"model": SCRIPT})
    await client.profiles.CreateProfile(
        profile_service_pb2.CreateProfileRequest(
            request_id=request_id(), profile=types_pb2.Profile(name=name, spec=spec)
        ),
        metadata=client.metadata,
    )
    made = await client.assemble(name="talk", members=[{"name": "solo", "profile": name}], context={})
    yield made
    await client.disband(made.id)


async def test_the_official_client_talks_with_an_agent_in_both_ways(models, talker):
    name = f"{talker.id}/solo"
    listed = [entry.id async for entry in models.models.list()]
    assert name in listed
    assert (
        (await models.models.retrieve(name)).id
        == (await models.models.retrieve(talker.agents[0].id)).id
        == name
    )
    with pytest.raises(openai.NotFoundError):
        await models.models.retrieve(f"{talker.id}/nobody")
    messages: list[Any] = [{"role": "user", "content": "please write"}]
    whole = await models.chat.completions.create(model=name, messages=messages)
    assert whole.choices[0].message.content == "Writing. It is done now."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].message.tool_calls is None
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
    stream = await models.chat.completions.create(
        model=talker.agents[0].id, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Writing. It is done now."
    )
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


async def test_its_tools_and_the_callers_work_side_by_side(models, talker):
    name = f"{talker.id}/solo"
    messages: list[Any] = [
        {"role": "user", "content": "write"},
        {"role": "assistant", "content": "Writing."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": [{"type": "text", "text": "the weather?"}]},
    ]
    asked = await models.chat.completions.create(model=name, messages=messages, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    [call] = asked.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Bern"})
    messages += [
        asked.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    answer = await models.chat.completions.create(model=name, messages=messages, tools=[WEATHER], stream=True)
    said = "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])
    assert said == "Take an umbrella."


async def test_what_goes_wrong_has_the_shape_that_the_client_knows(running, models, talker):
    name = f"{talker.id}/solo"
    hello: list[Any] = [{"role": "user", "content": "write"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        await models.chat.completions.create(model="c-none/solo", messages=hello)
    assert (unknown.value.code, unknown.value.param) == ("RESOURCE_NOT_FOUND", "model")
    with pytest.raises(openai.BadRequestError) as unnamed:
        await models.chat.completions.create(model="", messages=hello)
    assert unnamed.value.param == "model"
    with pytest.raises(openai.BadRequestError) as twice:
        await models.chat.completions.create(model=name, messages=hello, n=2)
    assert twice.value.param == "n"
    with pytest.raises(openai.BadRequestError) as off_script:
        await models.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "sing"}], stream=True
        )
    assert "expects a message with" in off_script.value.message
    with pytest.raises(openai.BadRequestError) as image:
        parts = [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]
        await models.chat.completions.create(model=name, messages=[{"role": "user", "content": parts}])
    assert image.value.param == "messages[0].content[0]"


async def test_what_goes_wrong_after_the_first_word_is_an_error_of_the_stream(models, talker):
    messages: list[Any] = [{"role": "assistant", "content": "yes?"} for _ in range(5)]
    messages.append({"role": "user", "content": "break"})
    stream = await models.chat.completions.create(
        model=f"{talker.id}/solo", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    said = ""
    with pytest.raises(openai.APIError) as broken:
        async for chunk in stream:
            assert chunk.usage is None
            said += chunk.choices[0].delta.content or ""
    assert said == "Breaking."
    assert (broken.value.code, broken.value.type) == ("WRONG_STATE", "invalid_request_error")


async def test_what_the_guard_refuses_has_that_shape_too(running):
    told = running.client
    tls = ssl.create_default_context(cafile=told["ca"])
    tls.load_cert_chain(told["cert"], told["key"])
    async with aiohttp.ClientSession() as session:
        url = f"https://{told['endpoint']}/v1/chat/completions"
        async with session.post(url, json={}, ssl=tls, server_hostname=told["authority"]) as answer:
            assert answer.status == 401
            error = (await answer.json())["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "TOKEN_MISSING")


async def test_one_that_hibernates_is_woken(client, models, talker):
    agent = talker.agents[0].id
    await client.factory.HibernateAgent(
        factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=agent),
        metadata=client.metadata,
    )
    got = await client.crews.GetCrew(
        crew_service_pb2.GetCrewRequest(crew=talker.id), metadata=client.metadata
    )
    assert got.crew.agents[0].state == types_pb2.AGENT_STATE_HIBERNATING
    messages: list[Any] = [{"role": "user", "content": "write"}]
    whole = await models.chat.completions.create(model=agent, messages=messages)
    assert whole.choices[0].message.content == "Writing. It is done now."


async def test_a_client_that_leaves_ends_the_conversation(client, models, talker):
    agent = talker.agents[0].id
    messages: list[Any] = [{"role": "assistant", "content": "yes?"} for _ in range(4)]
    messages.append({"role": "user", "content": "sleep"})
    stream = await models.chat.completions.create(model=agent, messages=messages, stream=True)
    said = ""
    async for chunk in stream:
        said += chunk.choices[0].delta.content or ""
        if said == "Sleeping.":
            break
    await stream.close()
    request = factory_service_pb2.HibernateAgentRequest(request_id=request_id(), agent=agent)
    async with asyncio.timeout(GONE_WITHIN_S):
        while True:  # refused as long as the agent is at work
            try:
                await client.factory.HibernateAgent(request, metadata=client.metadata)
                break
            except grpc.aio.AioRpcError as busy:
                assert busy.code() is grpc.StatusCode.FAILED_PRECONDITION
                await asyncio.sleep(0.1)
