"""Agent cards, where A2A's clients look for them: one for each agent."""

from __future__ import annotations

import hashlib
from typing import Final

from aiohttp import web
from google.protobuf.json_format import MessageToJson

from factory_server.api.a2a.policy import OPERATORS, READERS, SHORT_S
from factory_server.api.a2a.servicer import A2AUses
from factory_server.api.http.app import HttpFace
from wire.policy import Row

PATH: Final = "/agents/{agent}/.well-known/agent-card.json"
MARK_CHARS: Final = 32


def add_routes(face: HttpFace, uses: A2AUses) -> None:
    """Serve the cards to whom A2A serves the extended ones: they are the same."""

    async def card(request: web.Request) -> web.Response:
        made = await uses.card(request.match_info["agent"])
        mark = hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest()[:MARK_CHARS]
        headers = {"ETag": f'"{mark}"', "Cache-Control": "private, no-cache"}
        if any(known.value == mark for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        text = MessageToJson(made, indent=None)
        return web.Response(text=text, content_type="application/json", headers=headers)

    face.add("GET", PATH, card, Row(f"GET {PATH}", OPERATORS, READERS, default_deadline_s=SHORT_S))
