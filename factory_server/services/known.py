"""What a keeper knows of its crew: rows as they were read, overtaken by what was committed here since."""

from __future__ import annotations

from dataclasses import replace as with_fields

from factory_server.core import model
from factory_server.core.lifecycle import AgentState, CrewState

ON_THE_WAY = (AgentState.PROVISIONING, AgentState.WARMING)


class KnownCrew:
    """A crew and its members that are not STOPPED. Nothing here regresses: an older row changes nothing."""

    def __init__(self) -> None:
        self.crew: model.CrewRow | None = None
        self.agents: dict[str, model.AgentRow] = {}
        self.state: CrewState | None = None
        self.ready: model.CrewRow | None = None
        """The crew by the newest commit of ours, where that left it READY and every member is known."""
        self._state_at = 0
        self._fresh: dict[str, model.AgentRow] = {}

    def begin_to_read(self) -> None:
        """From here on, what is committed is newer than what the read will bring."""
        self._fresh.clear()

    def see(self, crew: model.CrewRow) -> model.CrewRow:
        """Take over what was read, but for rows that were committed while it was being read."""
        agents = [newer(a, self._fresh.get(a.id)) for a in crew.agents]
        self.crew = with_fields(crew, agents=agents)
        self._know(crew.state, crew.last_sequence)
        self.agents = {a.id: a for a in agents if a.state is not AgentState.STOPPED}
        return self.crew

    def committed(self, stepped: model.Stepped) -> None:
        """Take over what a transaction of ours did."""
        self._know(stepped.crew_state, stepped.last_sequence)
        for result in stepped.results:
            row = result.agent
            if row is None:
                continue
            self._fresh[row.id] = row
            if row.state is AgentState.STOPPED:
                self.agents.pop(row.id, None)
            else:
                self.agents[row.id] = row
        self.ready = self._ready(stepped)

    def agent_of(self, instance: str) -> model.AgentRow | None:
        """Whose present instance this is."""
        for agent in self.agents.values():
            if agent.instance is not None and agent.instance.id == instance:
                return agent
        return None

    def working(self) -> bool:
        """Whether any agent is on its way to READY."""
        return any(a.state in ON_THE_WAY for a in self.agents.values())

    def _ready(self, stepped: model.Stepped) -> model.CrewRow | None:
        head = stepped.head
        if self.crew is None or head is None or stepped.crew_state is not CrewState.READY:
            return None
        if head.members != self.agents.keys():
            return None
        return with_fields(
            self.crew,
            state=stepped.crew_state,
            last_sequence=stepped.last_sequence,
            reason=head.reason,
            message=head.message,
            ready_at=head.ready_at,
            agents=model.in_order(self.agents.values()),
        )

    def _know(self, state: CrewState, sequence: int) -> None:
        """The crew's state as of this event; what was read before a commit does not undo it."""
        if sequence >= self._state_at:
            self.state, self._state_at = state, sequence


def newer(read: model.AgentRow, committed: model.AgentRow | None) -> model.AgentRow:
    """The later of two rows of one agent."""
    if committed is None:
        return read
    return max(read, committed, key=lambda row: (row.generation, row.updated_at))
