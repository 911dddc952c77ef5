"""The specification's REST session with plain httpx through the gateway, and what hostile HTTP gets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import ssl
import tarfile
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from http_client import JSON, events, http, proxied, raw, tls
from running import MANIFEST, Client, Running

pytestmark = pytest.mark.timeout(180)

BODY_MAX_BYTES = 4 << 20
TRUSTED = {"host": "factory.svc", "connection": "close"}


@pytest.fixture
async def web(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with http(running) as client:
        yield client


@pytest.fixture
async def crew_id(client: Client) -> AsyncIterator[str]:
    """A READY crew of one, disbanded at the end."""
    made = await client.assemble(name="rest", members=[{"name": "one", "profile": "generic"}])
    yield made.id
    await client.disband(made.id)


def lines(answer: httpx.Response) -> list[dict]:
    return [json.loads(line) for line in answer.text.splitlines()]


def refused(answer: httpx.Response, http_code: int, reason: str = "") -> dict:
    """A refusal is a google.rpc.Status in JSON, under its HTTP code."""
    assert answer.status_code == http_code, answer.text
    assert answer.headers["content-type"].startswith(JSON)
    status = answer.json()
    assert set(status) == {"code", "message", "details"}
    (info,) = [d for d in status["details"] if d["@type"].endswith("ErrorInfo")]
    assert not reason or info["reason"] == reason
    return status


async def test_the_specifications_session(web):
    key = str(uuid.uuid4())
    assembled = await web.post("/crews/assemble", json=MANIFEST, headers={"Idempotency-Key": key})
    assert assembled.status_code == 200, assembled.text
    assert assembled.headers["idempotency-key"] == key
    crew = assembled.json()["crew"]
    assert crew["state"] == "CREW_STATE_READY"
    try:
        again = await web.post("/crews/assemble", json=MANIFEST, headers={"Idempotency-Key": key})
        assert again.json()["crew"]["id"] == crew["id"]

        assert crew["id"] in [c["id"] for c in (await web.get("/crews")).json()["crews"]]
        assert (await web.get(f"/crews/{crew['id']}")).json()["crew"]["name"] == MANIFEST["name"]
        told = {"signal": "MISSION_START", "target": {"states": ["READY"]}, "ttl": "10s"}
        stages = lines(await web.post(f"/crews/{crew['id']}/broadcast", json=told))
        assert stages[0]["accepted"]["targets"] == 3
        assert stages[-1]["completed"]["stages"] == [{"stage": "RECEIPT_STAGE_ACKED", "count": 3}]

        task = {"group": "coder", "input": {"words": ["a", "b"]}, "timeout": "20s"}
        updates = lines(await web.post(f"/crews/{crew['id']}/tasks", json=task))
        assert "accepted" in updates[0]
        assert "result" in updates[-1]

        agents = (await web.get("/agents", params={"filter": f"crew={crew['id']}", "pageSize": 2})).json()
        assert len(agents["agents"]) == 2
        assert agents["nextPageToken"]
        agent = agents["agents"][0]["id"]
        assert (await web.get(f"/agents/{agent}")).json()["agent"]["id"] == agent

        put = await web.put(f"/crews/{crew['id']}/context/plans/one", json={"value": {"steps": [1, 2]}})
        assert put.status_code == 200, put.text
        got = await web.get(f"/crews/{crew['id']}/context/plans/one")
        assert got.json()["entry"]["value"] == {"steps": [1.0, 2.0]}
    finally:
        gone = await web.delete(f"/crews/{crew['id']}", params={"grace": "0s"})
    assert gone.json()["crew"]["state"] == "CREW_STATE_DISBANDED"


async def test_an_event_stream_resumes_after_its_last_event(web, crew_id):
    """However often it is cut: no gap and no duplicate."""
    seen: list[int] = []
    last = ""
    for round_ in range(4):
        told = {"signal": f"ROUND_{round_}"}
        assert (await web.post(f"/crews/{crew_id}/broadcast", json=told)).status_code == 200
        page = (await web.get(f"/crews/{crew_id}/events:list")).json()["events"]
        head = int(page[-1]["sequence"])
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        async with web.stream("GET", f"/crews/{crew_id}/events", headers=headers) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            async for event, last_id, data in events(stream.aiter_lines()):
                assert event == "message"
                last = last_id
                seen += [int(e["sequence"]) for e in data["events"]]
                if seen and seen[-1] >= head:
                    break
    assert seen == list(range(1, seen[-1] + 1))
    other = await web.get(f"/crews/{crew_id}/events", headers={"Last-Event-ID": "nonsense"})
    refused(other, 400, "CURSOR_INVALID")


@pytest.mark.parametrize("base", ["\u00f2", "nowhere", "../bases", "PYTHON"])
async def test_a_pool_of_a_base_that_is_not_there_is_refused_by_field(web, base):
    for target in (0, 1):
        status = refused(await web.patch("/pool", json={"base": base, "target": target}), 400)
        (bad,) = [d for d in status["details"] if d["@type"].endswith("BadRequest")]
        assert [wrong["field"] for wrong in bad["fieldViolations"]] == ["base"]
    assert [pool["base"] for pool in (await web.get("/pool")).json()["pools"]] == ["python"]


async def test_the_description_is_there_and_so_are_the_keys(running, web):
    described = (await web.get("/openapi.json")).json()
    assert described["openapi"].startswith("3.1")
    wanted = {
        ("/crews/assemble", "post"),
        ("/crews", "get"),
        ("/crews/{crew}", "get"),
        ("/crews/{crew}", "delete"),
        ("/crews/{crew}/broadcast", "post"),
        ("/crews/{crew}/events", "get"),
        ("/crews/{crew}/tasks", "post"),
        ("/agents", "get"),
        ("/agents/{agent}", "get"),
        ("/agents/{agent}/mcp", "post"),
        ("/crews/{crew}/mcp", "delete"),
        ("/v1/chat/completions", "post"),
        ("/v1/models", "get"),
        ("/agents/{agent}/.well-known/agent-card.json", "get"),
    }
    assert wanted <= {(path, verb) for path, item in described["paths"].items() for verb in item}
    async with http(running, token="") as without:
        keys = (await without.get("/.well-known/jwks.json")).json()["keys"]
    assert keys[0]["crv"] == "Ed25519"


REFUSED = {
    "no json": (b"{", 400, "FIELD_INVALID"),
    "a list": (b"[]", 400, "FIELD_INVALID"),
    "bad utf-8": (b'{"name": "\xff\xfe"}', 400, "FIELD_INVALID"),
    "half a surrogate": (rb'{"name": "\ud800"}', 400, "FIELD_INVALID"),
    "no number": (b'{"name": NaN}', 400, "FIELD_INVALID"),
    "a thousand digits": (b'{"members": [{"replicas": ' + b"9" * 5000 + b"}]}", 400, "FIELD_INVALID"),
    "nested deep": (b'{"context": {"a": ' + b"[" * 3000 + b"]" * 3000 + b"}}", 400, "FIELD_INVALID"),
    "a field twice": (b'{"name": "a", "name": "b"}', 400, "FIELD_INVALID"),
    "unknown": (b'{"name": "a", "colour": 1}', 400, "FIELD_INVALID"),
    "constraints": (b'{"name": "A B"}', 400, "FIELD_INVALID"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_bad_manifest_is_refused_and_named(web, what):
    body, code, reason = REFUSED[what]
    answer = await web.post("/crews/assemble", content=body, headers={"content-type": JSON})
    status = refused(answer, code, reason)
    assert any(d["@type"].endswith("BadRequest") for d in status["details"])


async def test_what_http_itself_refuses(web, crew_id):
    refused(await web.get("/nowhere"), 404)
    refused(await web.post(f"/crews/{crew_id}", json={}), 405)
    refused(await web.post("/crews/assemble", content=b"x=1"), 415)
    huge = b'{"name": "' + b"x" * BODY_MAX_BYTES + b'"}'
    refused(await web.post("/crews/assemble", content=huge, headers={"content-type": JSON}), 413)
    packed = {"content-type": JSON, "content-encoding": "gzip"}
    refused(await web.post("/crews/assemble", content=b"\x1f\x8b", headers=packed), 415)
    refused(await web.get("/crews", params={"colour": "red"}), 400, "FIELD_INVALID")
    refused(await web.get("/crews", params={"pageSize": "501"}), 400, "FIELD_INVALID")
    refused(await web.get(f"/crews/{crew_id}/broadcasts"), 404)
    mixed = {"requestId": str(uuid.uuid4()), "signal": "GO"}
    keyed = {"Idempotency-Key": str(uuid.uuid4())}
    refused(await web.post(f"/crews/{crew_id}/broadcast", json=mixed, headers=keyed), 400, "FIELD_INVALID")


def request(*extra: str, line: str = "GET /crews HTTP/1.1", body: str = "") -> bytes:
    head = [line, *(f"{name}: {value}" for name, value in TRUSTED.items()), *extra]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode("latin-1")


SMUGGLED = {
    "both lengths": request(
        "content-length: 4",
        "transfer-encoding: chunked",
        line="POST /crews HTTP/1.1",
        body="0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    ),
    "two lengths": request(
        "content-length: 4", "content-length: 5", line="POST /crews HTTP/1.1", body="abcd"
    ),
    "odd coding": request(
        "transfer-encoding: chunked, identity", line="POST /crews HTTP/1.1", body="0\r\n\r\n"
    ),
    "a space before the colon": request("content-length : 0"),
    "a folded line": request("x-a: b", " c: d"),
    "a null byte": request("x-a: b\0c"),
    "a long header": request("x-a: " + "b" * 20_000),
    "many headers": request(*(f"x-{n}: 1" for n in range(500))),
    "a long line": request(line=f"GET /{'a' * 20_000} HTTP/1.1"),
    "no http": b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "another version": request(line="GET /crews HTTP/9.9"),
}


@pytest.mark.parametrize("what", SMUGGLED)
async def test_what_is_no_plain_request_gets_one_refusal_and_the_end(running, what):
    told = await raw(running, SMUGGLED[what])
    assert told.count(b"HTTP/1.1 ") <= 1, told
    assert not told or 400 <= int(told.split()[1]) < 500, told
    assert b"Traceback" not in told


async def test_credentials_must_be_whole(running, web, tmp_path):
    """No token, another's, one that was changed, two of them; no certificate, one of another CA."""
    token = web.headers["authorization"].removeprefix("Bearer ")
    for given, reason in (
        ("", "TOKEN_MISSING"),
        ("x.y.z", "TOKEN_INVALID"),
        (token[:-4] + "AAAA", "TOKEN_INVALID"),
    ):
        async with http(running, token=given) as client:
            answer = await client.get("/crews")
            refused(answer, 401, reason)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    twice = await raw(running, request(*[f"authorization: Bearer {token}"] * 2))
    assert twice.split()[1] == b"401", twice

    bare = ssl.create_default_context(cafile=running.client["ca"])
    bare.set_alpn_protocols(["http/1.1"])
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert not await raw(running, request(), context=bare)
        raise ConnectionError("closed without a word")
    forged = tls(running.client)
    forged.load_cert_chain(*stranger(tmp_path))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        assert not await raw(running, request(), context=forged)
        raise ConnectionError("closed without a word")


def stranger(directory):
    """A certificate that names an operator and is signed by nobody we know."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), datetime.now(UTC)
    uri = x509.UniformResourceIdentifier("spiffe://hyperfactory.local/operator/eve")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_file = directory / "cert.pem", directory / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return pem, key_file


def archive(*members: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


async def test_a_skill_pack_is_published_as_a_body_of_bytes(web):
    text = b"---\nname: rest-pack\ndescription: Sent over plain HTTP.\n---\nDo it.\n"
    pack = archive(("SKILL.md", text), ("notes.txt", os.urandom(600_000)))
    published = await web.post("/skills", content=pack, headers={"content-type": "application/octet-stream"})
    assert published.status_code == 200, published.text
    digest = published.json()["pack"]["digest"]
    got = await web.get(f"/skills/rest-pack@{digest}")
    assert {file["path"] for file in got.json()["pack"]["files"]} == {"SKILL.md", "notes.txt"}
    other = {"digest": "sha256:" + "0" * 64, "validateOnly": "true"}
    assert (await web.post("/skills", content=pack, params=other)).status_code == 400
    refused(await web.post("/skills", content=b"no archive"), 400)
    refused(await web.post("/skills", content=pack, params={"colour": "red"}), 400, "FIELD_INVALID")


async def test_refusals_over_http_are_audited(web, client):
    refused(
        await web.post("/agents:reportHealth", json={"reports": [{"agent": "a", "generation": "1"}]}), 403
    )
    async with asyncio.timeout(20):
        while True:
            told = (await web.get("/audit")).json()["events"]
            if any(
                e["method"].endswith("ReportHealth") and e["outcome"] == "PERMISSION_DENIED" for e in told
            ):
                return
            await asyncio.sleep(0.1)


async def test_the_proxy_serves_local_programs_only(running, crew_id):
    async with proxied(running) as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as local:
        own = {"authorization": "Bearer sk-whatever", "origin": "http://localhost:3000"}
        assert (await local.get(f"/crews/{crew_id}", headers=own)).json()["crew"]["id"] == crew_id
        assert (await local.get("/crews", headers={"host": "evil.example"})).status_code == 403
        for origin in ("https://evil.example", "null", "http://localhost.evil.example"):
            assert (await local.get("/crews", headers={"origin": origin})).status_code == 403
        assert (await local.get("/crews", headers={"sec-fetch-site": "cross-site"})).status_code == 403

        headers = {"Accept": "text/event-stream"}
        async with local.stream("GET", f"/crews/{crew_id}/events", headers=headers) as stream:
            async for _, _, data in events(stream.aiter_lines()):
                if data["events"]:
                    assert data["events"][0]["sequence"] == "1"
                    break
        value = {"value": "x" * 60_000}
        assert (await local.put(f"/crews/{crew_id}/context/large", json=value)).status_code == 200
        huge = b'{"value": "' + b"x" * BODY_MAX_BYTES + b'"}'
        answer = await local.put(
            f"/crews/{crew_id}/context/huge", content=huge, headers={"content-type": JSON}
        )
        refused(answer, 413)
