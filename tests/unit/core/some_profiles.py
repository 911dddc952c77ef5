"""Profiles to plan crews with."""

from __future__ import annotations

from datetime import UTC, datetime

from factory_server.core.model import ProfileRow
from hyperfactory.v1 import types_pb2

NEVER = datetime.fromtimestamp(0, UTC)


def profile(name: str, stage: str = "PRODUCTION", **spec: object) -> ProfileRow:
    """A profile with this spec."""
    return ProfileRow(name, 1, f"sha256:{name}", types_pb2.ProfileSpec(**spec), stage, "", NEVER, NEVER)  # type: ignore[arg-type]


PROFILES = {
    "coder": profile("coder", scope="coder", env={"A": "theirs", "C": "kept"}, skills=["git"]),
    "judge": profile("judge", scope="reviewer"),
    "bare": profile("bare"),
    "old": profile("old", "RETIRED"),
}
