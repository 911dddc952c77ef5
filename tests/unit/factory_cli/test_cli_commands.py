"""What each command sends, prints and returns as its exit code."""

from __future__ import annotations

import json

import pytest
from fake_factory import TOKEN

from factory_cli.failures import Exit

MANIFEST = json.dumps(
    {
        "name": "hello",
        "members": [{"name": "planner", "profile": "planner"}, {"name": "coder", "profile": "coder"}],
        "ttl": "3600s",
        "policy": {"onMemberFailure": "LEAVE"},
    }
)


async def test_assembling_prints_the_crew_and_carries_the_token(cli, crews):
    ended = await cli("crew", "assemble", "-", stdin=MANIFEST)
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert "crew c1 'hello' is READY" in ended.out
    assert "coder" in ended.out
    assert crews.tokens == {f"Bearer {TOKEN}"}
    sent = crews.seen[-1].manifest
    assert (sent.ttl.seconds, sent.policy.on_member_failure) == (3600, 3)


async def test_json_is_one_document_wherever_the_flag_stands(cli, crews):
    first = await cli("--json", "crew", "assemble", "-", stdin=MANIFEST)
    second = await cli("crew", "list", "--json")
    assert first.json["crew"]["id"] == "c1"
    assert [crew["name"] for crew in second.json["crews"]] == ["hello"]


async def test_a_crew_is_found_by_its_name(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    ended = await cli("crew", "get", "hello", "--json")
    assert ended.json["id"] == "c1"


async def test_a_name_that_two_crews_have_is_refused_with_their_ids(cli, crews):
    for _ in range(2):
        await cli("crew", "assemble", "-", stdin=MANIFEST)
    ended = await cli("crew", "disband", "hello")
    assert ended.code == Exit.USAGE
    assert "c1, c2" in ended.err


async def test_receipts_come_as_json_lines_with_the_summary_last(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    payload = '{"limit": 3}'
    ended = await cli(
        "crew", "broadcast", "c1", "MISSION_START", "--to", "coder", "--payload", payload, "--json"
    )
    assert ended.code == Exit.OK
    assert ended.lines[-1]["completed"]["targets"] == 1
    assert crews.seen[-1].payload["limit"] == 3


async def test_a_signal_that_agents_refuse_fails_the_command(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    ended = await cli("crew", "broadcast", "c1", "REFUSE_ME")
    assert ended.code == Exit.FAILED
    assert "2 of 2 agents" in ended.err


async def test_a_watch_that_is_cut_goes_on_without_a_gap_or_a_double(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    for number in range(4):
        crews.tell("c1", signal={"signal": f"S{number}", "targets": 1})
    crews.cut_watch_after = 2
    ended = await cli("crew", "watch", "c1", "--count", "5", "--json")
    assert ended.code == Exit.OK
    assert [event["sequence"] for event in ended.lines] == ["1", "2", "3", "4", "5"]
    assert "cursor: 5" in ended.err


async def test_a_watch_ends_when_nothing_comes(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    crews.tell("c1", signal={"signal": "GO", "targets": 2})
    ended = await cli("crew", "watch", "hello", "--idle", "0.3")
    assert ended.code == Exit.OK
    assert [line.split(maxsplit=2)[2] for line in ended.out.splitlines()] == [
        "crew         READY",
        "crew         signal GO to 2 agents",
    ]
    assert "cursor: 2" in ended.err


async def test_a_models_answer_is_printed_as_it_comes_and_once(cli, crews):
    ended = await cli("task", "run", "c1", "--any", "--input", '{"text": "Hello dear world"}')
    assert ended.code == 0
    assert ended.out.endswith("half\nHello dear world\n")


async def test_a_task_prints_progress_and_its_output(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    ended = await cli("task", "run", "c1", "--agent", "planner", "--input", '{"a": [1, null]}')
    assert "50%  half" in ended.out
    assert json.loads(ended.out[ended.out.index("{") :]) == {"a": [1.0, None]}


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--agent", "planner", "--input", '{"fail": 1}'), Exit.FAILED),
        (("--group", "coder"), Exit.PRECONDITION),
        ((), Exit.USAGE),
        (("--any", "--agent", "planner"), Exit.USAGE),
        (("--any", "--input", "[1]"), Exit.INVALID),
    ],
)
async def test_a_task_that_cannot_be_done_says_so_by_its_exit_code(cli, crews, args, code):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    ended = await cli("task", "run", "c1", *args)
    assert ended.code == code
    assert "Traceback" not in ended.err


async def test_a_bad_field_is_named_by_the_server_too(cli, crews):
    manifest = {"name": "x", "members": [{"name": "a", "profile": "nobody"}]}
    ended = await cli("crew", "assemble", "-", "--json", stdin=json.dumps(manifest))
    assert ended.code == Exit.INVALID
    assert ended.json["error"]["reason"] == "FIELD_INVALID"
    assert ended.json["error"]["fields"][0]["field"] == "manifest.members[0].profile"
    assert "profile 'nobody' is unknown" in ended.err


async def test_what_does_not_exist_is_exit_4(cli, crews):
    ended = await cli("crew", "get", "c9")
    assert (ended.code, ended.out) == (Exit.NOT_FOUND, "")
    assert "crew 'c9' does not exist [RESOURCE_NOT_FOUND]" in ended.err


async def test_without_a_stack_it_says_how_to_start_one(cli):
    ended = await cli("crew", "list")
    assert ended.code == Exit.UNAVAILABLE
    assert "hyperfactory up" in ended.err


async def test_a_server_that_is_gone_is_exit_3(cli, crews, tmp_path):
    file = tmp_path / "client.json"
    body = json.loads(file.read_text()) | {"endpoint": "127.0.0.1:1"}
    file.write_text(json.dumps(body))
    ended = await cli("pool")
    assert ended.code == Exit.UNAVAILABLE
    assert "Traceback" not in ended.err


async def test_the_pool_is_set_and_shown(cli, crews):
    ended = await cli("pool", "--target", "7", "--json")
    assert ended.json["pools"][0]["target"] == 7


async def test_logs_are_printed_as_written(cli, crews):
    assert (await cli("agent", "logs", "a0")).out == "hello world\n"


async def test_a_context_value_may_be_any_json_or_text(cli, crews):
    for text, kind in (("[1]", "list_value"), ("plain words", "string_value"), ("null", "null_value")):
        await cli("context", "put", "c1", "key", text, "--if-version", "0")
        assert crews.seen[-1].value.WhichOneof("kind") == kind
        assert crews.seen[-1].HasField("if_version")


async def test_any_method_can_be_called_and_gets_a_request_id(cli, crews):
    await cli("crew", "assemble", "-", stdin=MANIFEST)
    unary = await cli("call", "DisbandCrew", '{"crew": "c1"}')
    assert unary.json["crew"]["state"] == "CREW_STATE_DISBANDED"
    assert len(crews.seen[-1].request_id) == 36
    stream = await cli("call", "CrewService/Broadcast", "-", stdin='{"crew": "c1", "signal": "GO"}')
    assert len(stream.lines) == 4


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("call", "RunTask"), Exit.USAGE, "CrewService/RunTask, AgentService/RunTask"),
        (("call", "Nothing"), Exit.USAGE, "no method"),
        (("call", "Deliver"), Exit.USAGE, "stream of requests"),
        (("call", "GetCrew", '{"nam": 1}'), Exit.INVALID, "request.nam"),
        (("crew", "watch", "c1", "--type", "weather"), Exit.USAGE, "agent_state"),
        (("crew", "fly"), Exit.USAGE, "fly"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(cli, crews, args, code, says):
    ended = await cli(*args)
    assert ended.code == code
    assert says in ended.err


async def test_methods_are_listed(cli):
    methods = {method["method"]: method for method in (await cli("call", "--list", "--json")).json["methods"]}
    assert methods["hyperfactory.v1.CrewService/WatchCrew"]["kind"] == "stream"
    assert {method["served"] for method in methods.values()} == {"yes"}


async def test_connect_prints_lines_that_name_the_credentials(cli, crews, tmp_path):
    ended = await cli("connect", "--json")
    line = ended.json["commands"]["buf"]
    assert f"--cacert {tmp_path}/ca.pem" in line
    assert "--servername factory.svc" in line
    assert TOKEN not in ended.out
