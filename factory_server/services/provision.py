"""Bring one agent from intent to READY: make its instance, let it assume its identity, publish it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import replace as with_fields

from factory_server.core import model, reconcile, secrets
from factory_server.core.errors import DigestMismatch, FactoryError, Invalid, Refused
from factory_server.core.lifecycle import TERMINAL, AgentEvent, AgentState
from factory_server.core.line import Line
from factory_server.core.sandbox import Limits, SandboxSpec
from factory_server.services import skills
from factory_server.services.parts import ACTOR, Parts
from factory_server.services.sessions import Sessions
from factory_server.services.wiring import Wiring
from hyperfactory.v1 import agent_service_pb2, types_pb2

log = logging.getLogger("factory.provision")


StepOne = Callable[[model.Step], Awaitable[model.AgentRow | None]]


class InstanceFailed(Exception):
    """The instance itself does not become the agent. Where the bus, the driver or the store did not answer,
    nothing is said about the instance: that is tried again with the same one."""

    def __init__(self, error: FactoryError) -> None:
        super().__init__(str(error))
        self.error = error


def limits_of(spec: types_pb2.ProfileSpec) -> Limits:
    """The driver's limits from a profile's; 0 means the default."""
    given, default = spec.limits, Limits()
    return Limits(
        memory_bytes=given.memory_bytes or default.memory_bytes,
        pids_max=given.pids or default.pids_max,
        cpu_millis=given.cpu_millis or default.cpu_millis,
        workspace_bytes=given.workspace_bytes or default.workspace_bytes,
    )


def roster_of(agents: Sequence[model.AgentRow], revision: int) -> agent_service_pb2.Roster:
    """Who is in the crew now, with live generations."""
    return agent_service_pb2.Roster(
        revision=revision,
        peers=[_peer(a) for a in agents if a.state not in TERMINAL],
    )


def _peer(agent: model.AgentRow) -> agent_service_pb2.Peer:
    peer = agent_service_pb2.Peer(
        agent=agent.id,
        name=agent.name,
        generation=agent.generation,
        group=agent.group,
        profile=agent.profile,
    )
    if agent.frozen_at is not None:
        peer.frozen_time.FromDatetime(agent.frozen_at)
    return peer


class Phases:
    """Where the time of one agent's making went, in milliseconds."""

    def __init__(self) -> None:
        self.spent: list[tuple[str, float]] = []
        self.ended = False
        """The agent is READY: its next instance has phases of its own."""
        self._began = self._since = time.monotonic()

    def mark(self, phase: str) -> None:
        """The phase that ends now."""
        now = time.monotonic()
        self.spent.append((phase, (now - self._since) * 1000))
        self._since = now

    def whole_s(self) -> float:
        """From the start until now."""
        return time.monotonic() - self._began


def phases_of(agent: str, known: MutableMapping[str, Phases]) -> Phases:
    """Those of the instance that is being made."""
    phases = known.get(agent)
    if phases is None or phases.ended:
        phases = known[agent] = Phases()
    return phases


async def create(parts: Parts, agent: model.AgentRow, step: StepOne, phases: Phases) -> model.AgentRow | None:
    """PROVISIONING → WARMING. Raises what the driver raises; None where the step lost.

    A woken agent is WARMING already: where its instance answers is stored with the step to READY. Until then
    whoever takes over makes the same instance again, that is, finds it.
    """
    if agent.instance is None:
        raise Refused(f"{agent.id} has no instance to make")
    spec = SandboxSpec(
        instance=agent.instance.id,
        base=agent.instance.base,
        limits=limits_of(agent.spec),
        labels={"crew": agent.crew, "agent": agent.id, "generation": str(agent.generation)},
    )
    sandbox = await parts.driver.create(spec, deadline_s=reconcile.ready_timeout_s(agent))
    phases.mark("create")
    fact = model.SandboxFact(
        sandbox.instance, sandbox.driver, sandbox.control, sandbox.host_pid, sandbox.container_id
    )
    if agent.state is AgentState.WARMING:
        return with_fields(agent, instance=_answering(agent.instance, fact))
    return await step(
        model.Step(
            agent.id,
            agent.generation,
            (AgentState.PROVISIONING,),
            AgentEvent.INSTANCE_STARTED,
            ACTOR,
            reason="InstanceStarted",
            sandbox=fact,
        )
    )


def _answering(instance: model.InstanceRow, fact: model.SandboxFact) -> model.InstanceRow:
    return with_fields(
        instance,
        driver=fact.driver,
        control=fact.control,
        host_pid=fact.host_pid,
        container_id=fact.container_id,
    )


def _fact_of(instance: model.InstanceRow) -> model.SandboxFact | None:
    """What the store does not know yet of an instance that was made for a woken agent."""
    if instance.state is not model.InstanceState.STARTING:
        return None
    return model.SandboxFact(
        instance.id, instance.driver, instance.control, instance.host_pid, instance.container_id
    )


async def _saved(parts: Parts, agent: model.AgentRow) -> agent_service_pb2.StateBlob | None:
    """What hibernation kept; also for the successor of an instance that died before it was READY."""
    saved = await parts.store.saved_state(agent.id) if agent.generation > 1 else None
    return None if saved is None else agent_service_pb2.StateBlob(data=saved.data, sha256=saved.sha256)


async def _secrets(parts: Parts, agent: model.AgentRow) -> Mapping[str, str]:
    """What the profile refers to. One that was taken away since the crew was planned is missed by every
    successor, too."""
    try:
        return await secrets.required(parts.secrets, secrets.named_in(agent.spec), f"start '{agent.name}'")
    except FactoryError as error:
        raise InstanceFailed(error) from error


async def assume(
    parts: Parts,
    sessions: Sessions,
    wiring: Wiring,
    agent: model.AgentRow,
    crew: Sequence[model.AgentRow],
    revision: int,
    step: StepOne,
    rewire: Callable[[], Awaitable[None]],
    phases: Phases,
) -> model.AgentRow | None:
    """WARMING → READY; None where the step lost. Raises InstanceFailed, or what the bus, the driver and the
    store raise."""
    if agent.instance is None:
        raise Refused(f"{agent.id} is WARMING without an instance")
    access = await parts.bus.grant(agent.crew, agent.id, agent.generation)
    await wiring.introduce(agent)
    request = agent_service_pb2.AssumeRequest(
        agent=agent.id,
        uid=agent.uid,
        name=agent.name,
        crew=agent.crew,
        generation=agent.generation,
        profile=agent.profile,
        spec=agent.spec,
        identity=parts.identities.identify(agent),
        bus=access,
        roster=roster_of(crew, revision),
        authority=f"{agent.name}.crew-{agent.crew}.svc",
        group=agent.group,
        egress=wiring.leads_out,
        state=await _saved(parts, agent),
        secrets=await _secrets(parts, agent),
        skills=await _skills(parts, agent),
    )
    request.spec.scope = agent.scope
    phases.mark("identify")
    line = sessions.line(agent.instance.control)
    try:
        await _assumed(line, request, reconcile.ready_timeout_s(agent))
        phases.mark("assume")
        direct = await _published(parts, agent, agent.instance.id)
        wiring.publish(agent, direct)
        await rewire()
        phases.mark("wire")
        ready = await step(
            model.Step(
                agent.id,
                agent.generation,
                (AgentState.WARMING,),
                AgentEvent.HEALTH_OK,
                ACTOR,
                reason="Serving",
                direct=direct,
                sandbox=_fact_of(agent.instance),
            )
        )
        phases.mark("ready")
    except BaseException:
        await line.close()
        raise
    if ready is None or ready.instance is None:
        await line.close()
        return ready
    if sessions.attach(ready, line).line is not line:
        await line.close()
    phases.ended = True
    parts.measures.spawn_s.labels("warm" if ready.warm else "cold").observe(phases.whole_s())
    return ready


async def _skills(parts: Parts, agent: model.AgentRow) -> list[agent_service_pb2.MountedSkill]:
    """The row's packs, shown in the instance. A pack that is not what its pin says is so for every instance."""
    try:
        return await skills.lay_out(parts, agent)
    except DigestMismatch as error:
        raise InstanceFailed(error) from error


async def _assumed(line: Line, request: agent_service_pb2.AssumeRequest, deadline_s: float) -> None:
    try:
        await line.assume(request, deadline_s=deadline_s)
    except FactoryError as error:
        raise InstanceFailed(error) from error


async def _published(parts: Parts, agent: model.AgentRow, instance: str) -> str:
    """An agent may take its own socket away for ever: after the ready timeout that is its failure."""
    try:
        return await parts.driver.publish(instance)
    except FactoryError as error:
        if reconcile.overdue(agent, parts.now()):
            raise InstanceFailed(error) from error
        raise


def state_corrupt(error: FactoryError) -> bool:
    """Whether the instance could not take the agent's state back: no successor could."""
    return isinstance(error, Invalid) and any(v.field.startswith("state.") for v in error.violations)


def broken(error: FactoryError) -> bool:
    """Whether another instance would fail in the same way."""
    return isinstance(error, Invalid | Refused)
