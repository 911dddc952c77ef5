"""Tell other clients how to connect."""

from __future__ import annotations

import shlex

from factory_cli.client import ClientFile, read_client_file
from factory_cli.session import Session

_METHOD = "hyperfactory.v1.CrewService/ListCrews"


def show(session: Session) -> None:
    """Print addresses, credential paths and lines that can be pasted."""
    found = read_client_file(session.client_file)
    lines = {
        "buf": _buf_curl(found),
        "grpcurl": _grpcurl(found),
        "curl": _curl(found),
        "openssl": _openssl(found),
    }
    if session.out.as_json:
        facts = {
            "endpoint": found.endpoint,
            "authority": found.authority,
            "ca": str(found.ca),
            "cert": str(found.cert),
            "key": str(found.key),
            "token": str(found.token),
        }
        session.out.document({**facts, "clientFile": str(session.client_file), "commands": lines})
        return
    rows = [
        ("endpoint", found.endpoint),
        ("authority", f"{found.authority}  (the TLS server name)"),
        ("roots", found.ca),
        ("certificate", found.cert),
        ("key", found.key),
        ("token", f"{found.token}  (short-lived and renewed: read it for each call)"),
    ]
    session.out.table(("", ""), rows)
    for name, line in lines.items():
        session.out.text(f"\n# {name}\n{line}")


def _buf_curl(found: ClientFile) -> str:
    return (
        f"buf curl --protocol grpc --cacert {_q(found.ca)} --cert {_q(found.cert)} --key {_q(found.key)} "
        f"--servername {found.authority} {_bearer(found)} https://{found.endpoint}/{_METHOD}"
    )


def _grpcurl(found: ClientFile) -> str:
    return (
        f"grpcurl -cacert {_q(found.ca)} -cert {_q(found.cert)} -key {_q(found.key)} "
        f"-authority {found.authority} {_bearer(found)} {found.endpoint} {_METHOD}"
    )


def _curl(found: ClientFile) -> str:
    # With HTTP/2 on offer, the gateway would lead it to the gRPC server.
    return (
        f"curl --http1.1 --cacert {_q(found.ca)} --cert {_q(found.cert)} --key {_q(found.key)} "
        f"--connect-to {found.authority}:443:{found.endpoint} {_bearer(found)} https://{found.authority}/crews"
    )


def _openssl(found: ClientFile) -> str:
    return (
        f"openssl s_client -connect {found.endpoint} -servername {found.authority} -alpn h2 "
        f"-CAfile {_q(found.ca)} -cert {_q(found.cert)} -key {_q(found.key)} -brief </dev/null"
    )


def _bearer(found: ClientFile) -> str:
    # Read by the shell at each call, so that the line stays good when the token is renewed.
    return f'-H "authorization: Bearer $(cat {_q(found.token)})"'


def _q(path: object) -> str:
    return shlex.quote(str(path))
