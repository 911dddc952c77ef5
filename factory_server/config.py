"""What a factory process is told on its command line."""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factory_server.core.networks import POOL_PREFIX, members_max
from factory_server.drivers import CREW_NETWORKS, KINDS
from factory_server.services.call_rates import CALLS_PER_S

POOL_TARGET = 4
CELL_MEMBERS = 3
CELLS_MAX = 100
BUS_URL_VARIABLE = "HYPERFACTORY_BUS_URL"
"""A command line is everybody's to read, an environment only its owner's."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process. `pool` is the warm pool's first size; later ones are kept in the store."""

    home: Path
    database_url: str
    bus_url: str
    listen: str
    gateway: str
    metrics: str
    driver: str
    pool: int
    terminate: bool
    hold: bool = False
    http_listen: str = ""
    crew_networks: str = CREW_NETWORKS
    crew_cells: int = 0
    cell_members: int = CELL_MEMBERS
    vector_search: str = "auto"
    tool_calls_per_s: float = CALLS_PER_S


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line; argparse tells what is wrong and exits with 2."""
    given = vars(build_parser().parse_args(arguments))
    for name in ("database_url", "bus_url"):
        file = given.pop(f"{name}_file")
        given[name] = given[name] or file
    # An address on the command line comes before the environment's, which may be a whole container's.
    given["bus_url"] = given["bus_url"] or os.environ.get(BUS_URL_VARIABLE)
    given |= {name: given[name] or "" for name in ("database_url", "bus_url")}
    settings = Config(**given)
    _check(settings)
    return settings


def _check(settings: Config) -> None:
    """A factory needs its stores; what only touches sandboxes does not, and is better without their secrets."""
    if settings.terminate or settings.hold:
        return
    if not settings.database_url:
        build_parser().error("one of --database-url and --database-url-file is needed")
    if not settings.bus_url:
        build_parser().error(f"one of --bus-url, --bus-url-file and ${BUS_URL_VARIABLE} is needed")


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser("factory_server", description="Run a Hyper Agent Factory server.")
    parser.add_argument("--home", type=Path, required=True, help="directory for PKI and sandboxes")
    database = parser.add_mutually_exclusive_group()
    database.add_argument("--database-url", help="PostgreSQL 15 or newer")
    database.add_argument("--database-url-file", type=_secret, help="a file with the same, for a password")
    bus = parser.add_mutually_exclusive_group()
    bus.add_argument(
        "--bus-url", help=f"Redis 7 or Valkey, with an admin's credentials; better in ${BUS_URL_VARIABLE}"
    )
    bus.add_argument("--bus-url-file", type=_secret, help="a file with the same")
    parser.add_argument("--listen", default="127.0.0.1:7443", help="host:port of the gRPC server (mTLS)")
    parser.add_argument(
        "--http-listen", default="", help="host:port of REST, MCP and chat (mTLS, HTTP/1.1); default: none"
    )
    parser.add_argument(
        "--gateway", default="127.0.0.1:8443", help="host:port of the gateway, as told to clients"
    )
    parser.add_argument("--metrics", default="127.0.0.1:0", help="host:port of /metrics and /readyz")
    parser.add_argument("--driver", default="auto", choices=KINDS, help="what makes sandboxes")
    parser.add_argument(
        "--crew-networks",
        type=_subnet,
        default=CREW_NETWORKS,
        help=f"addresses for crews' own networks, where the driver has any (default {CREW_NETWORKS})",
    )
    parser.add_argument(
        "--crew-cells",
        type=int,
        choices=range(CELLS_MAX + 1),
        metavar="N",
        default=0,
        help="keep so many networks ready with warm members in them, for bridged crews (default 0)",
    )
    parser.add_argument(
        "--cell-members",
        type=int,
        choices=range(1, members_max(POOL_PREFIX) + 1),
        metavar="K",
        default=CELL_MEMBERS,
        help=f"warm members of each of them, 20 MiB each (default {CELL_MEMBERS})",
    )
    parser.add_argument(
        "--vector-search",
        choices=("auto", "exact"),
        default="auto",
        help="auto: by the bus's vector sets where its server has them (Redis 8); exact: never (default auto)",
    )
    parser.add_argument(
        "--tool-calls-per-s",
        type=_rate,
        default=CALLS_PER_S,
        help=f"calls of tools that one caller may make in a second; 0: no limit (default {CALLS_PER_S:g})",
    )
    parser.add_argument("--pool", type=int, default=POOL_TARGET, help="first size of the warm pool")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--terminate", action="store_true", help="end every sandbox of this home, and exit")
    only.add_argument(
        "--hold",
        action="store_true",
        help="keep only the sandboxes' fork server, for factories that lack its privileges",
    )
    return parser


def _subnet(text: str) -> str:
    """A whole subnet in its own spelling."""
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"cannot use '{text}': {error}") from None


def _rate(text: str) -> float:
    """A number that is not negative."""
    rate = float(text)
    if not 0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"cannot use '{text}': a rate is a number from 0 on")
    return rate


def _secret(path: str) -> str:
    """What the file says; the message of an error names the file and never its content."""
    try:
        secret = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read '{path}': {type(error).__name__}") from None
    if not secret:
        raise argparse.ArgumentTypeError(f"cannot use '{path}': it is empty")
    return secret
