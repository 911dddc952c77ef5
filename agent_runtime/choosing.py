"""Choose the model behind an agent's Chat: an endpoint that its profile names, else the scripted one."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from agent_runtime import models
from agent_runtime.egress import SOCKET
from agent_runtime.limits import CHAT_TOOL_ROUNDS_DEFAULT, MODEL_ANSWER_DEFAULT_S, MODEL_RETRIES_DEFAULT
from agent_runtime.models import Model
from agent_runtime.structs import to_dict
from hyperfactory.v1 import agent_service_pb2 as pb
from hyperfactory.v1 import types_pb2
from wire.errors import Refused

# Programs of the sandbox that speak TLS are told so of roots beside the system's; the model's client, too.
CA_VARIABLE: Final = "SSL_CERT_FILE"

InThread = Callable[..., Awaitable[Any]]


async def choose(request: pb.AssumeRequest, peers: Path, in_thread: InThread) -> Model:
    """The model. Its client is imported only where there is an endpoint: most agents have none."""
    spec = request.spec.model
    if not spec.base_url:
        return models.from_config(to_dict(request.spec.config))
    for module in ("agent_runtime.openai.http", "agent_runtime.openai.client"):
        await in_thread(importlib.import_module, module)
    from agent_runtime.openai.client import OpenAIModel, Settings
    from agent_runtime.openai.http import WayOut, endpoint

    return OpenAIModel(
        Settings(
            to=endpoint(spec.base_url),
            model=spec.model,
            embedding_model=spec.embedding_model,
            timeout_s=spec.timeout.ToNanoseconds() / 1e9 or MODEL_ANSWER_DEFAULT_S,
            max_retries=spec.max_retries if spec.HasField("max_retries") else MODEL_RETRIES_DEFAULT,
            way=WayOut(peers / SOCKET if request.egress else None, request.spec.env.get(CA_VARIABLE, "")),
            key=_key(spec.api_key_secret, request.secrets),
        )
    )


def names_model(spec: types_pb2.ProfileSpec) -> bool:
    """Whether the profile says who answers: an endpoint, or a script."""
    return bool(spec.model.base_url) or models.CONFIGURED in spec.config.fields


def tool_rounds_max(spec: types_pb2.Model) -> int:
    """How often the model may call tools before it must answer."""
    return spec.max_tool_rounds if spec.HasField("max_tool_rounds") else CHAT_TOOL_ROUNDS_DEFAULT


def _key(name: str, secrets: Any) -> str:
    """The key that the profile refers to; what cannot stand in a header is none, and is not repeated in errors."""
    if not name:
        return ""
    key = secrets[name].strip() if name in secrets else ""
    if not key:
        raise Refused(f"no secret '{name}' was given", reason="SECRET_MISSING", metadata={"secret": name})
    if not (key.isascii() and key.isprintable()):
        raise Refused(f"secret '{name}' cannot be a key: it has characters that no header may have")
    return key
