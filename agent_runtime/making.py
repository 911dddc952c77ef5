"""Make an agent from what `Assume` says: load its code, give it its crew, bus, memory and tools."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from agent_runtime import choosing, software
from agent_runtime.assumed import AssumedAgent
from agent_runtime.bus import Access, Bus
from agent_runtime.calling import Caller
from agent_runtime.capabilities import Capabilities
from agent_runtime.egress import proxy_env
from agent_runtime.identity import IdentityHolder
from agent_runtime.loader import load
from agent_runtime.logs import AgentLogger
from agent_runtime.memory import Memory
from agent_runtime.parts import Parts
from agent_runtime.paths import Paths
from agent_runtime.peers import Peers
from agent_runtime.process import Runner
from agent_runtime.profile import Agent, Context, Facts
from agent_runtime.roster import Roster
from agent_runtime.servers.servers import Servers
from agent_runtime.servers.spec import spec_of
from agent_runtime.signals import Inbox
from agent_runtime.skills import Skills
from agent_runtime.structs import to_dict
from agent_runtime.tools.files import FileTools
from agent_runtime.tools.registry import OWN, Registry
from hyperfactory.v1 import agent_service_pb2 as pb
from wire.errors import FieldViolation, Invalid
from wire.identity import agent_authority, agent_spiffe

DEFAULT_SCOPE: Final = "coder"
BUS_SOCKET: Final = "bus.sock"
_SOCKET_RE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


async def make(request: pb.AssumeRequest, paths: Paths, inbox: Inbox, proxy: str = "") -> AssumedAgent:
    """The agent, not started yet. Nothing is left behind when this raises."""
    facts = _facts(request, proxy)
    identity = IdentityHolder(request.identity)
    caller = Caller(facts.agent)
    try:
        model = await choosing.choose(request, paths.peers, caller.in_thread)
        code = await load(request.spec.entry_point, caller.in_thread)
        context = _context(request, facts, paths, identity, caller.in_thread)
        registry = _registry(code, context, caller)
        servers = _servers(request, context)
        skills = await _skills(request, paths, context)
    except BaseException:
        caller.close()
        raise
    rounds = choosing.tool_rounds_max(request.spec.model)
    named = choosing.names_model(request.spec)
    parts = Parts(
        context, code, caller, context.bus, identity, registry, model, servers, skills, rounds, named
    )
    return AssumedAgent(parts, inbox)


def _facts(request: pb.AssumeRequest, proxy: str) -> Facts:
    missing = [
        FieldViolation(name, "is required")
        for name in ("agent", "name", "crew", "generation")
        if not getattr(request, name)
    ]
    if missing:
        raise Invalid("cannot assume an identity that is not complete", violations=missing)
    return Facts(
        agent=request.agent,
        uid=request.uid,
        name=request.name,
        crew=request.crew,
        generation=request.generation,
        profile=request.profile,
        group=request.group,
        scope=request.spec.scope or DEFAULT_SCOPE,
        authority=request.authority or agent_authority(request.name, request.crew),
        spiffe=agent_spiffe(request.crew, request.name),
        env=dict(request.spec.env),
        config=to_dict(request.spec.config),
        proxy=proxy,
    )


def _context(
    request: pb.AssumeRequest,
    facts: Facts,
    paths: Paths,
    identity: IdentityHolder,
    in_thread: Callable[..., Awaitable[Any]],
) -> Context:
    roster = Roster()
    roster.apply(request.roster)
    logger = logging.getLogger(f"agent.{facts.profile or 'generic'}")
    fields = {"crew": facts.crew, "agent": facts.name, "generation": facts.generation}
    return Context(
        facts=facts,
        roster=roster,
        bus=Bus(_access(request, facts, paths)),
        memory=Memory(),
        workspace=paths.workspace,
        peers=Peers(paths, facts.crew, roster, identity.current),
        runner=Runner(paths.workspace, {**proxy_env(facts.proxy), **facts.env}),
        log=AgentLogger(logger, fields),
        in_thread=in_thread,
        capabilities=Capabilities(),
    )


def _access(request: pb.AssumeRequest, facts: Facts, paths: Paths) -> Access:
    socket = request.bus.socket or BUS_SOCKET
    if not _SOCKET_RE.fullmatch(socket):
        raise Invalid("the bus is no socket of the peers directory", violations=[_in_bus("socket")])
    return Access(
        path=str(paths.peers / socket),
        username=request.bus.username,
        password=request.bus.password,
        prefix=request.bus.prefix or f"crew:{facts.crew}:",
        name=facts.name,
        actor=f"crew/{facts.crew}/agent/{facts.name}",
    )


def _in_bus(field: str) -> FieldViolation:
    return FieldViolation(f"bus.{field}", "must be a file name")


def _servers(request: pb.AssumeRequest, context: Context) -> Servers:
    """Those of the profile, not started yet; what they will offer, and how they are, is the agent's."""
    offered, facts = context.capabilities, context.facts
    base = {**software.environment(context.workspace), **proxy_env(facts.proxy), **facts.env}
    specs = [spec_of(server, base, request.secrets) for server in request.spec.mcp_servers]
    return Servers(specs, context.workspace, offered)


async def _skills(request: pb.AssumeRequest, paths: Paths, context: Context) -> Skills:
    """Those that lie there already, offered."""
    skills = Skills(paths.skills, paths.workspace, context.runner, context.capabilities, context.in_thread)
    for mounted in request.skills:
        await skills.mount(mounted)
    return skills


def _registry(code: Agent, context: Context, caller: Caller) -> Registry:
    files = FileTools(context.workspace, context.runner, caller.in_thread)
    code.ctx = context
    offered = context.capabilities
    try:
        offered.tools.replace(OWN, [*files.tools(), *code.tools()])
        offered.resources.replace(OWN, code.resources())
        offered.prompts.replace(OWN, code.prompts())
    except Exception as error:
        raise caller.failure(error) from error
    return offered.tools
