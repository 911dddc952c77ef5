"""Assemble a crew, and show each member on its way to READY."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from factory_cli import crews
from factory_cli.client import ASSEMBLE_WITHIN_S, CALL_WITHIN_S, Client
from factory_cli.failures import CommandFailedError, Exit
from factory_cli.output import Output, enum_name
from factory_cli.requests import new_id
from factory_cli.watching import Watch, events_of
from hyperfactory.v1 import crew_service_pb2, events_pb2, types_pb2

if TYPE_CHECKING:
    from rich.table import Table

_SETTLED = (types_pb2.CREW_STATE_READY, types_pb2.CREW_STATE_FAILED, types_pb2.CREW_STATE_DISBANDED)


@dataclass(frozen=True, slots=True)
class Assemble:
    """One wish for a crew."""

    manifest: crew_service_pb2.CrewManifest
    until_ready: bool = True
    validate_only: bool = False

    async def run(self, client: Client, out: Output) -> None:
        """Assemble and print the crew; on a terminal with its progress."""
        if out.live and self.until_ready and not self.validate_only:
            await self._run_live(client, out)
            return
        wait = crew_service_pb2.WAIT_FOR_READY if self.until_ready else crew_service_pb2.WAIT_FOR_ACCEPTED
        answer = await self._call(client, wait)
        if out.as_json:
            out.document(answer)
        elif self.validate_only:
            out.text("the manifest is valid")
        else:
            crews.show(out, answer.crew)
            show_report(out, answer.report)

    async def _call(
        self, client: Client, wait: crew_service_pb2.WaitFor.ValueType
    ) -> crew_service_pb2.AssembleCrewResponse:
        request = crew_service_pb2.AssembleCrewRequest(
            request_id=new_id(), manifest=self.manifest, wait=wait, validate_only=self.validate_only
        )
        return await client.crews.AssembleCrew(request, timeout=ASSEMBLE_WITHIN_S)

    async def _run_live(self, client: Client, out: Output) -> None:
        accepted = await self._call(client, crew_service_pb2.WAIT_FOR_ACCEPTED)
        try:
            async with asyncio.timeout(ASSEMBLE_WITHIN_S):
                await _show_progress(client, out, accepted.crew)
        except TimeoutError:
            message = (
                f"crew {accepted.crew.id} goes on assembling; 'hyperfactory crew watch' tells how it ends"
            )
            raise CommandFailedError(message, Exit.UNAVAILABLE) from None
        request = crew_service_pb2.GetCrewRequest(crew=accepted.crew.id)
        crew = (await client.crews.GetCrew(request, timeout=CALL_WITHIN_S)).crew
        crews.show(out, crew)
        if crew.state != types_pb2.CREW_STATE_READY:
            raise CommandFailedError(f"cannot assemble crew '{crew.name}': {crew.message}", Exit.PRECONDITION)


async def _show_progress(client: Client, out: Output, crew: types_pb2.Crew) -> None:
    """Redraw the members until the crew is settled."""
    from rich.console import Console
    from rich.live import Live

    members = {agent.id: (agent.name, enum_name(agent, "state"), "") for agent in crew.agents}
    with Live(_picture(members.values()), console=Console(file=out.stdout), transient=True) as live:
        async for response in events_of(client, Watch(crew.id)):
            for event in response.events:
                if event.WhichOneof("payload") == "agent_step":
                    members[event.agent] = _member(event.agent_step)
                elif event.WhichOneof("payload") == "crew_step" and event.crew_step.to in _SETTLED:
                    return
            live.update(_picture(members.values()))


def _member(step: events_pb2.AgentStep) -> tuple[str, str, str]:
    return step.name, enum_name(step, "to"), step.message or step.reason


def _picture(members: Iterable[tuple[str, str, str]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("MEMBER", "STATE", "WHY"):
        table.add_column(column)
    for name, state, why in sorted(members):
        colour = {"READY": "green", "FAILED": "red"}.get(state, "yellow")
        table.add_row(name, f"[{colour}]{state}[/]", why)
    return table


def show_report(out: Output, report: crew_service_pb2.AssemblyReport) -> None:
    """Print where the time went."""
    if not report.milliseconds:
        return
    warm = sum(member.warm for member in report.members)
    phases = ", ".join(f"{phase.phase} {phase.milliseconds:.1f}" for phase in report.phases)
    out.text(
        f"READY in {report.milliseconds:.1f} ms ({warm} warm, {len(report.members) - warm} cold"
        + (f"; ms: {phases})" if phases else ")")
    )
