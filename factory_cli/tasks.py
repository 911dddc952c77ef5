"""Run a task on a member of a crew and follow it to its end."""

from __future__ import annotations

from dataclasses import dataclass

from factory_cli.client import Client
from factory_cli.failures import CommandFailedError, UsageFailedError
from factory_cli.output import Output, free_json
from factory_cli.requests import duration, new_id, struct
from hyperfactory.v1 import agent_service_pb2, crew_service_pb2

TASK_MARGIN_S = 10.0
"""The server ends the task at its timeout; its answer may take this much longer."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who shall do it: exactly one of the three."""

    agent: str = ""
    group: str = ""
    any: bool = False

    def check(self) -> None:
        """Refuse none and more than one."""
        if sum((bool(self.agent), bool(self.group), self.any)) != 1:
            raise UsageFailedError("say who shall do it: one of --agent NAME, --group NAME, --any")


async def run(client: Client, out: Output, crew: str, target: Target, text: str, timeout_s: float) -> None:
    """Run a task; a task that fails is a failed command."""
    target.check()
    request = crew_service_pb2.RunTaskRequest(
        request_id=new_id(),
        crew=await client.crew_id(crew),
        input=struct(text, "input"),
        timeout=duration(timeout_s),
    )
    if target.any:
        request.any = True
    elif target.group:
        request.group = target.group
    else:
        request.agent = target.agent
    result = await follow(client, out, request, within_s=timeout_s + TASK_MARGIN_S)
    if result.status.code:
        raise CommandFailedError(f"the task failed: {result.status.message}")
    if not out.as_json and not result.finish_reason:
        out.document(free_json(result.output))


async def follow(
    client: Client, out: Output, request: crew_service_pb2.RunTaskRequest, *, within_s: float
) -> agent_service_pb2.TaskResult:
    """Run a task, print each update, and return its result. A model's answer is printed as it comes."""
    said = list[str]()
    async for response in client.crews.RunTask(request, timeout=within_s):
        if out.as_json:
            out.line(response)
        match response.WhichOneof("update"):
            case "accepted":
                accepted = response.accepted
                out.text(f"task {accepted.task} taken by {accepted.agent} generation {accepted.generation}")
            case "progress" if response.progress.delta:
                said.append(response.progress.delta)
                _say(out, response.progress.delta)
            case "progress":
                out.text(f"  {response.progress.fraction:4.0%}  {response.progress.message}")
            case "result":
                if said or response.result.finish_reason:
                    whole = response.result.output.fields["text"].string_value
                    _say(out, whole.removeprefix("".join(said)) + "\n")
                return response.result
            case _:
                pass
    raise CommandFailedError("the task's stream ended before its result; 'crew watch' tells its end")


def _say(out: Output, text: str) -> None:
    if not out.as_json:
        out.pass_on(text)
