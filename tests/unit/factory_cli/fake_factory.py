"""A factory that keeps crews in memory, for commands to talk to over real gRPC and real mTLS."""

# ruff: noqa: N802 - methods are named by the contract

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hyperfactory.v1 import (
    agent_service_pb2,
    crew_service_pb2,
    crew_service_pb2_grpc,
    events_pb2,
    factory_service_pb2,
    factory_service_pb2_grpc,
    types_pb2,
)
from wire import status
from wire.errors import FieldViolation, Invalid, NotFound, Refused

TOKEN = "token-of-the-operator"
DAY = datetime.timedelta(days=1)


class FakeCrews(crew_service_pb2_grpc.CrewServiceServicer):
    def __init__(self) -> None:
        self.crews: dict[str, types_pb2.Crew] = {}
        self.events: list[events_pb2.Event] = []
        self.seen: list[object] = []
        self.tokens: set[str] = set()
        self.cut_watch_after = 0

    def _take(self, request: object, context: grpc.aio.ServicerContext) -> None:
        self.seen.append(request)
        self.tokens |= {value for key, value in context.invocation_metadata() if key == "authorization"}

    async def _crew(self, name: str, context: grpc.aio.ServicerContext) -> types_pb2.Crew:
        if name not in self.crews:
            await status.abort(context, NotFound(f"crew '{name}' does not exist"))
        return self.crews[name]

    async def AssembleCrew(self, request, context):
        self._take(request, context)
        if request.manifest.members[0].profile == "nobody":
            violation = FieldViolation("manifest.members[0].profile", "profile 'nobody' is unknown")
            await status.abort(context, Invalid("the manifest is not valid", violations=[violation]))
        if request.validate_only:
            return crew_service_pb2.AssembleCrewResponse()
        crew = types_pb2.Crew(id=f"c{len(self.crews) + 1}", name=request.manifest.name)
        crew.state = types_pb2.CREW_STATE_READY
        for number, member in enumerate(request.manifest.members):
            crew.agents.add(
                id=f"a{number}",
                name=member.name,
                crew=crew.id,
                state=types_pb2.AGENT_STATE_READY,
                generation=1,
            )
        self.crews[crew.id] = crew
        self.tell(crew.id, crew_step=events_pb2.CrewStep(to=types_pb2.CREW_STATE_READY))
        return crew_service_pb2.AssembleCrewResponse(crew=crew)

    def tell(self, crew: str, **payload: object) -> None:
        kind = events_pb2.EVENT_TYPE_CREW_STATE if "crew_step" in payload else events_pb2.EVENT_TYPE_SIGNAL
        self.events.append(events_pb2.Event(crew=crew, sequence=len(self.events) + 1, type=kind, **payload))

    async def ListCrews(self, request, context):
        self._take(request, context)
        name = request.filter.removeprefix("name=") if request.filter else ""
        crews = [crew for crew in self.crews.values() if not name or crew.name == name]
        return crew_service_pb2.ListCrewsResponse(crews=crews)

    async def GetCrew(self, request, context):
        self._take(request, context)
        return crew_service_pb2.GetCrewResponse(crew=await self._crew(request.crew, context))

    async def DisbandCrew(self, request, context):
        self._take(request, context)
        crew = await self._crew(request.crew, context)
        crew.state = types_pb2.CREW_STATE_DISBANDED
        return crew_service_pb2.DisbandCrewResponse(crew=crew)

    async def Broadcast(self, request, context):
        self._take(request, context)
        crew = await self._crew(request.crew, context)
        chosen = [a for a in crew.agents if not request.target.names or a.name in request.target.names]
        yield crew_service_pb2.BroadcastResponse(accepted={"broadcast": "b1", "targets": len(chosen)})
        refused = request.signal == "REFUSE_ME"
        stage = events_pb2.RECEIPT_STAGE_REJECTED if refused else events_pb2.RECEIPT_STAGE_ACKED
        for agent in chosen:
            receipt = events_pb2.Receipt(agent=agent.id, name=agent.name, generation=1, stage=stage)
            yield crew_service_pb2.BroadcastResponse(receipts=[receipt])
        summary = crew_service_pb2.BroadcastSummary(broadcast="b1", targets=len(chosen))
        summary.stages.add(stage=stage, count=len(chosen))
        yield crew_service_pb2.BroadcastResponse(completed=summary)

    async def WatchCrew(self, request, context):
        self._take(request, context)
        start = int(request.cursor or 0)
        yield crew_service_pb2.WatchCrewResponse(cursor=str(start), created={})
        for event in self.events[start:]:
            if self.cut_watch_after and event.sequence > max(start, self.cut_watch_after):
                self.cut_watch_after = 0
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone for a moment")
            yield crew_service_pb2.WatchCrewResponse(events=[event], cursor=str(event.sequence))
        await asyncio.Event().wait()

    async def RunTask(self, request, context):
        self._take(request, context)
        if request.WhichOneof("target") == "group":
            await status.abort(context, Refused("no READY member", reason="LEASE_HELD"))
        accepted = crew_service_pb2.TaskAccepted(task="t1", agent="a0", generation=1)
        yield crew_service_pb2.RunTaskResponse(accepted=accepted)
        progress = agent_service_pb2.TaskProgress(fraction=0.5, message="half")
        yield crew_service_pb2.RunTaskResponse(progress=progress)
        result = agent_service_pb2.TaskResult(output=request.input)
        if "text" in request.input:
            for delta in ("Hello", " dear"):
                progress = agent_service_pb2.TaskProgress(delta=delta)
                yield crew_service_pb2.RunTaskResponse(progress=progress)
            result.finish_reason = "stop"
        if "fail" in request.input:
            result.status.code, result.status.message = 2, "the code raised"
        yield crew_service_pb2.RunTaskResponse(result=result)

    async def PutContext(self, request, context):
        self._take(request, context)
        return crew_service_pb2.PutContextResponse(version=request.if_version + 1)


class FakeFactory(factory_service_pb2_grpc.FactoryServiceServicer):
    def __init__(self) -> None:
        self.target = 4

    async def GetPool(self, request, context):
        pool = factory_service_pb2.Pool(base="python", target=self.target, ready=self.target)
        return factory_service_pb2.GetPoolResponse(pools=[pool])

    async def UpdatePool(self, request, context):
        self.target = request.target
        return factory_service_pb2.UpdatePoolResponse()

    async def GetAgentLogs(self, request, context):
        yield factory_service_pb2.GetAgentLogsResponse(chunk=b"hello ", offset=0)
        yield factory_service_pb2.GetAgentLogsResponse(chunk=b"world\n", offset=6)


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[FakeCrews]:
    """Serve on a port of loopback and write client.json into `home`."""
    write_pki(home)
    server = grpc.aio.server()
    crews = FakeCrews()
    crew_service_pb2_grpc.add_CrewServiceServicer_to_server(crews, server)
    factory_service_pb2_grpc.add_FactoryServiceServicer_to_server(FakeFactory(), server)
    credentials = grpc.ssl_server_credentials(
        [((home / "key.pem").read_bytes(), (home / "cert.pem").read_bytes())],
        root_certificates=(home / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    body = {"endpoint": f"127.0.0.1:{port}", "authority": "factory.svc"}
    body |= {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem", "token": "token"}
    (home / "client.json").write_text(json.dumps(body))
    try:
        yield crews
    finally:
        await server.stop(None)


def write_pki(home: Path) -> None:
    """Make a root and one leaf that serves for both ends."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, leaf_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )

    root = certificate(root_name, root_key)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names = [x509.DNSName("factory.svc"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]), leaf_key)
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    pem = serialization.Encoding.PEM
    (home / "ca.pem").write_bytes(root.sign(root_key, hashes.SHA256()).public_bytes(pem))
    (home / "cert.pem").write_bytes(leaf.sign(root_key, hashes.SHA256()).public_bytes(pem))
    key_format, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (home / "key.pem").write_bytes(leaf_key.private_bytes(pem, key_format, plain))
    (home / "token").write_text(TOKEN + "\n")
