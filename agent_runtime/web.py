"""The paths of the agent's HTTP socket."""

from __future__ import annotations

from agent_runtime.assumed import AssumedAgent
from agent_runtime.completions import Completions
from agent_runtime.front import Front
from agent_runtime.http.messages import Request, Response, json_response
from agent_runtime.http.server import Routes
from agent_runtime.mcp.endpoint import Endpoint
from wire.mcp.revisions import PATH


def routes(agent: AssumedAgent) -> Routes:
    """What this agent serves. `/health` asks for no caller: it says only that somebody is at home."""
    front = Front(agent.facts.authority)
    mcp = Endpoint(agent)

    async def health(_request: Request) -> Response:
        serving = agent.gate.open
        return json_response({"status": "SERVING" if serving else "NOT_SERVING"}, 200 if serving else 503)

    chat = Completions(agent).routes()
    return {
        **{path: {verb: front.guarded(h) for verb, h in of.items()} for path, of in chat.items()},
        "/health": {"GET": health},
        PATH: {
            "POST": front.guarded(mcp.post),
            "GET": front.guarded(mcp.get),
            "DELETE": front.guarded(mcp.delete),
        },
    }
