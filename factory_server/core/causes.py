"""Why a sandbox could not be made, as a condition's reason: what a driver knows, and people can mend."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from factory_server.core.errors import FactoryError

KEY: Final = "cause"
"""Where an error of `Driver.create` carries it, in its metadata."""


class Cause(StrEnum):
    """Named reasons."""

    CREATE_FAILED = "CreateFailed"
    """The driver's error says more."""
    IMAGE_MISSING = "ImageMissing"
    IMAGE_BROKEN = "ImageBroken"
    """Its instances end before they answer."""
    ENGINE_SILENT = "EngineSilent"


def cause_of(error: FactoryError) -> Cause:
    """The reason that an error carries."""
    return Cause(error.metadata.get(KEY, Cause.CREATE_FAILED))
