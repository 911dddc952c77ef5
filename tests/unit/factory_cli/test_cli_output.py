"""What commands print: nothing that an agent wrote drives a terminal, and what a tool says is said once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from factory_cli import tools
from factory_cli.client import connect
from factory_cli.failures import CommandFailedError, Exit
from factory_cli.output import Output
from hyperfactory.v1 import agent_service_pb2, types_pb2

TITLE = "\x1b]0;owned\x07 \x9b31m \u202edlrow \x7f"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def out() -> Output:
    return Output(as_json=False, stdout=io.StringIO(), stderr=io.StringIO())


def printed(out: Output) -> str:
    assert isinstance(out.stdout, io.StringIO)
    return out.stdout.getvalue()


def test_what_an_agent_wrote_drives_no_terminal(out: Output) -> None:
    out.text(TITLE)
    out.note(TITLE)
    out.table(("A",), [(TITLE,)])
    out.document({"text": TITLE})
    said = printed(out) + out.stderr.getvalue()  # type: ignore[attr-defined]
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert said.count("\\u001b]0;owned\\u0007") == 4
    assert json.loads(printed(out)[printed(out).index("{") :]) == {"text": TITLE}, "JSON says the same still"


def test_an_agents_log_is_exact_in_a_pipe_and_harmless_on_a_terminal(out: Output) -> None:
    out.pass_on(TITLE)
    assert printed(out) == TITLE
    seen = Output(as_json=False, stdout=Terminal())
    seen.pass_on(f"{TITLE}\n\té")
    assert "\x1b" not in printed(seen)
    assert printed(seen).endswith("\n\té")


@pytest.mark.parametrize(
    ("text", "structured", "shown"),
    [
        ('{"b": 2, "a": 1.0}', {"a": 1, "b": 2}, '{\n  "a": 1,\n  "b": 2\n}\n'),
        ("two words", {"words": 2}, 'two words\n{\n  "words": 2\n}\n'),
        ("only words", None, "only words\n"),
    ],
)
def test_what_a_tool_says_twice_is_shown_once(
    out: Output, text: str, structured: dict[str, int] | None, shown: str
) -> None:
    result = agent_service_pb2.ToolResult(text=text)
    if structured is not None:
        result.structured.update(structured)
    tools.show_result(out, result)
    assert printed(out) == shown


async def test_tools_of_an_agent_that_is_not_there_are_an_error(crews, out: Output, tmp_path: Path) -> None:
    crew = types_pb2.Crew(id="c1", name="hello")
    crew.agents.add(id="a7", name="coder-1", crew="c1")
    crews.crews["c1"] = crew
    async with connect(tmp_path / "client.json") as client:
        assert await tools.agent_in(client, "c1", "coder-1") == "a7"
        assert await tools.agent_in(client, "c1", "a7") == "a7"
        with pytest.raises(CommandFailedError) as caught:
            await tools.list_(client, out, "hello", "coder-2")
    assert caught.value.code == Exit.NOT_FOUND
