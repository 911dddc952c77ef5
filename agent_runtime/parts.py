"""What an agent is made of, and how far a caller's scopes reach in it."""

from __future__ import annotations

from typing import NamedTuple

from agent_runtime.bus import Bus
from agent_runtime.calling import Caller
from agent_runtime.identity import IdentityHolder
from agent_runtime.limits import CHAT_TOOL_ROUNDS_DEFAULT
from agent_runtime.models import Model
from agent_runtime.profile import Agent, Context
from agent_runtime.servers.servers import Servers
from agent_runtime.skills import Skills
from agent_runtime.tools.registry import ADMIN, Registry, may_write


class Parts(NamedTuple):
    """What an agent is made of."""

    context: Context
    code: Agent
    caller: Caller
    bus: Bus
    identity: IdentityHolder
    registry: Registry
    model: Model
    servers: Servers
    skills: Skills
    tool_rounds_max: int = CHAT_TOOL_ROUNDS_DEFAULT
    model_named: bool = False
    """The profile names a model: tasks in words are for it. The polite echo of the others is for Chat only."""

    def reach(self, scopes: frozenset[str]) -> dict[str, bool]:
        """Both must reach: the caller's scope, and the one of the agent's own identity."""
        own = {self.context.facts.scope}
        return {"writer": may_write(scopes) and may_write(own), "admin": ADMIN in scopes & own}
