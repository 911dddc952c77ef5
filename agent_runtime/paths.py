"""Where an instance finds its directories, and the sockets in them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Paths(NamedTuple):
    """`own` holds the sockets that this instance serves, `peers` those that it may dial, `skills` packs."""

    own: Path
    peers: Path
    workspace: Path
    skills: Path = Path("/skills")

    @property
    def control(self) -> Path:
        return self.own / "ctl.sock"

    @property
    def service(self) -> Path:
        return self.own / "svc.sock"

    @property
    def http(self) -> Path:
        return self.own / "http.sock"

    def peer(self, name: str) -> Path:
        return self.peers / f"{name}.sock"
