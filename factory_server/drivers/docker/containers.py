"""The engine's verbs on containers, blocking, each harmless to repeat; run in a lane's thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from docker.errors import APIError, ImageNotFound
from docker.errors import NotFound as NoSuchThing

from factory_server.drivers.docker.engine import Client, ConflictError, is_conflict
from factory_server.drivers.docker.hardening import LABEL_FACTORY, LABEL_GIVEN, LABEL_INSTANCE, LABEL_USER

LIVE: Final = frozenset({"running", "paused"})
REMOVAL_POLL_S: Final = 0.02
REMOVAL_POLLS: Final = 250
_FAILED_REMOVALS_MAX: Final = 5
_SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Found:
    """A container as the engine lists it."""

    id: str
    instance: str
    state: str
    created: float
    user: int
    labels: Mapping[str, str]


def listed(client: Client, factory: str) -> list[Found]:
    """All of this factory, whatever their state."""
    items = client.containers(all=True, filters={"label": f"{LABEL_FACTORY}={factory}"})
    return [_found(item) for item in items if LABEL_INSTANCE in item["Labels"]]


def _found(item: Mapping[str, Any]) -> Found:
    labels = item["Labels"]
    given = json.loads(labels.get(LABEL_GIVEN, "{}"))
    user = int(labels.get(LABEL_USER, "0"))
    return Found(item["Id"], labels[LABEL_INSTANCE], item["State"], item["Created"], user, given)


def exists(client: Client, name: str) -> bool:
    """Whether a container has this name."""
    try:
        client.inspect_container(name)
    except NoSuchThing:
        return False
    return True


def state(client: Client, container: str) -> Mapping[str, Any]:
    """What the engine knows of its process; empty when it knows no such container."""
    try:
        answer: Mapping[str, Any] = client.inspect_container(container)["State"]
    except NoSuchThing:
        return {}
    return answer


def image(client: Client, name: str) -> str:
    """The image's id, `sha256:…`; '' where there is none."""
    try:
        found: str = client.inspect_image(name)["Id"]
    except ImageNotFound:
        return ""
    return found


def make(client: Client, name: str, body: Mapping[str, Any], wanted: Callable[[], bool]) -> tuple[str, int]:
    """Create and start; the answer is the container and its first process on the host."""
    try:
        container: str = client.create_container_from_config(dict(body), name)["Id"]
    except APIError as error:
        if is_conflict(error):
            raise ConflictError(name) from error
        raise
    try:
        _start(client, container, wanted)
        return container, int(client.inspect_container(container)["State"]["Pid"])
    except Exception:
        remove(client, container)
        raise


def _start(client: Client, container: str, wanted: Callable[[], bool]) -> None:
    if not wanted():
        raise ConflictError("nobody wants it any more")
    client.start(container)


def remove(client: Client, name: str) -> None:
    """Kill and remove, from every state; returns when the engine knows it no more."""
    failures = 0
    for _ in range(REMOVAL_POLLS):
        try:
            client.remove_container(name, force=True, v=True)
        except NoSuchThing:
            return
        except APIError as error:
            # Somebody else removes it, or a mount is busy for a moment.
            failures += not is_conflict(error)
            if failures > _FAILED_REMOVALS_MAX or (error.status_code or _SERVER_ERROR) < 409:
                raise
            threading.Event().wait(REMOVAL_POLL_S)
        else:
            return
    raise ConflictError(f"'{name}' is not removed yet")


def pause(client: Client, container: str) -> None:
    """Freeze; it may be frozen."""
    try:
        client.pause(container)
    except APIError as error:
        if not is_conflict(error) or state(client, container).get("Status") != "paused":
            raise


def unpause(client: Client, container: str) -> None:
    """Thaw; it may not be frozen."""
    try:
        client.unpause(container)
    except APIError:
        if state(client, container).get("Status") != "running":
            raise


def run(
    client: Client,
    name: str,
    body: Mapping[str, Any],
    deadline_s: float,
    *,
    started: Callable[[int], object],
) -> bytes:
    """A container's output from its start to its end; `started` is told its process."""
    try:
        container, pid = make(client, name, body, lambda: True)
        started(pid)
        client.wait(container, timeout=deadline_s)
        output: bytes = client.logs(container, stdout=True, stderr=False)
        return output
    finally:
        remove(client, name)
