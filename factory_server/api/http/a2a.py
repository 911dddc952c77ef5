"""Agent cards, where A2A's clients look for them: one for each agent."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from google.protobuf.json_format import MessageToJson

from factory_server.api.a2a.policy import OPERATORS, READERS, SHORT_S
from factory_server.api.a2a.servicer import A2AUses
from factory_server.api.http.app import HttpFace
from wire.policy import Row

PATH: Final = "/agents/{agent}/.well-known/agent-card.json"


def add_routes(face: HttpFace, uses: A2AUses) -> None:
    """Serve the cards to whom A2A serves the extended ones: they are the same."""

    async def card(request: web.Request) -> web.Response:
        made = await uses.card(request.match_info["agent"])
        return web.Response(text=MessageToJson(made, indent=None), content_type="application/json")

    face.add("GET", PATH, card, Row(f"GET {PATH}", OPERATORS, READERS, default_deadline_s=SHORT_S))
