"""List in docs/security.md who may call what, as the contract's policy rows say; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "gen"), str(ROOT / "scripts")]

from google.protobuf.descriptor import ServiceDescriptor  # noqa: E402
from google.protobuf.descriptor_pool import Default  # noqa: E402
from lifecycle import run  # noqa: E402
from status import services  # noqa: E402

from factory_server.api.a2a import policy as a2a  # noqa: E402
from wire.policy import TOKEN_PRINCIPALS, PolicyTable, Principal, Resource, Row, builtin_rows  # noqa: E402

PAGE = ROOT / "docs" / "security.md"
WHOSE = {Resource.ANY: "any", Resource.OWN_CREW: "own crew", Resource.SELF: "itself"}


def described() -> list[ServiceDescriptor]:
    """Our services, as the programs load them."""
    for module in sorted((ROOT / "gen" / "hyperfactory" / "v1").glob("*_service_pb2.py")):
        __import__(f"hyperfactory.v1.{module.stem}")
    return [Default().FindServiceByName(name) for name, _ in services()]


def who(row: Row) -> str:
    """Who may call; with what scope, if they show a token."""
    names = [principal.name.lower() for principal in sorted(row.principals)]
    if row.scopes and row.principals & TOKEN_PRINCIPALS:
        names.append(f"scope {' or '.join(f'`{scope}`' for scope in sorted(row.scopes))}")
    return ", ".join(names) or "nobody"


def whose(row: Row) -> str:
    """On whose resources an agent may act; the others are not bound by it."""
    return WHOSE[row.resource] if Principal.AGENT in row.principals else ""


def line(row: Row) -> str:
    """One row of the table."""
    name = row.method.rpartition("/")[2]
    marks = [word for word, holds in (("changes", row.mutates), ("audited", row.audited)) if holds]
    return f"| `{name}` | {who(row)} | {whose(row)} | {', '.join(marks)} |"


def table(title: str, rows: list[Row]) -> list[str]:
    """A service's heading and its methods."""
    head = ["| method | who may call | an agent: on what | |", "| --- | --- | --- | --- |"]
    return ["", f"### {title}", "", *head, *(line(row) for row in rows)]


def render() -> str:
    """The whole policy, ours first."""
    found = described()
    foreign = a2a.rows()
    rows = PolicyTable.from_services(*found, foreign={a2a.SERVICE: foreign}).rows
    parts = [
        f"{len(rows)} methods; what is not listed is refused, and a server with such a method does not start."
    ]
    for service in found:
        own = [rows[f"/{service.full_name}/{method.name}"] for method in service.methods]
        parts += table(service.name, own)
    builtin: dict[str, list[Row]] = {}
    for row in (*foreign, *builtin_rows().values()):
        builtin.setdefault(row.method.split("/")[1], []).append(row)
    for name, own in builtin.items():
        parts += table(name, own)
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(run(PAGE, render, "scripts/policy.py"))
