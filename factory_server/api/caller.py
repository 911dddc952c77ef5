"""Say who calls, as events and idempotency keys name them."""

from __future__ import annotations

from wire.identity import TRUST_DOMAIN
from wire.policy import current_caller

PREFIX = f"spiffe://{TRUST_DOMAIN}/"


def actor() -> str:
    """The caller's SPIFFE path, as `operator/alice`."""
    return current_caller().spiffe.removeprefix(PREFIX)
