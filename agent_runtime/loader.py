"""Find a profile's class by its entry point, without letting its imports block the event loop."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final

from agent_runtime.profile import Agent
from agent_runtime.software import PACKAGES
from wire.errors import FactoryError, FieldViolation, Invalid, Refused

GENERIC: Final = "agent_runtime.profiles.generic:Generic"


async def load(entry_point: str, in_thread: Callable[..., Awaitable[Any]]) -> Agent:
    """Make the profile's agent. `Invalid` for an entry point that leads nowhere, `Refused` when its code fails."""
    module_name, _, class_name = (entry_point or GENERIC).partition(":")
    module = sys.modules.get(module_name) or await _import(entry_point, module_name, in_thread)
    found = getattr(module, class_name, None)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise _invalid(entry_point, f"'{class_name}' in '{module_name}' is no agent_runtime.profile.Agent")
    try:
        return found()
    except Exception as error:
        raise code_failed(f"cannot make a '{class_name}'", error) from error


async def _import(entry_point: str, module_name: str, in_thread: Callable[..., Awaitable[Any]]) -> ModuleType:
    try:
        module: ModuleType = await in_thread(_import_of_base, module_name)
    except ModuleNotFoundError as error:
        raise _invalid(entry_point, f"cannot import '{module_name}': {error}") from error
    except Exception as error:
        raise code_failed(f"cannot import '{module_name}'", error) from error
    return module


def _import_of_base(module_name: str) -> ModuleType:
    """Import a module of ours, or one of the profile's base: that comes last and replaces nothing of ours."""
    if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
        sys.path.append(str(PACKAGES))
    return importlib.import_module(module_name)


def _invalid(entry_point: str, why: str) -> Invalid:
    return Invalid(
        f"entry point '{entry_point}' does not load: {why}",
        violations=[FieldViolation("spec.entry_point", why)],
    )


def code_failed(what: str, error: Exception) -> FactoryError:
    """A refusal that says what the profile's own code raised while the agent was being made."""
    return Refused(f"{what}: {type(error).__name__}: {error}"[:1000], reason="AGENT_CODE_FAILED")
