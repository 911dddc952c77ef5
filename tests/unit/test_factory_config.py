"""The factory's command line: secrets come from files, and every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from factory_server import config

HOME = ("--home", "/h")
DATABASE = ("--database-url", "postgresql:///x")
BUS = ("--bus-url", "unix:///bus.sock")


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.BUS_URL_VARIABLE, raising=False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("scheme://user:word@host/name\n")
    return file


def test_secrets_come_from_files_without_their_last_newline(secret: Path) -> None:
    files = ("--database-url-file", str(secret), "--bus-url-file", str(secret))
    read = config.parse((*HOME, *files))
    assert read.database_url == read.bus_url == "scheme://user:word@host/name"


def test_the_bus_may_come_from_the_environment_and_the_command_line_wins(
    monkeypatch: pytest.MonkeyPatch, secret: Path
) -> None:
    monkeypatch.setenv(config.BUS_URL_VARIABLE, "unix:///environment")
    assert config.parse((*HOME, *DATABASE)).bus_url == "unix:///environment"
    assert config.parse((*HOME, *DATABASE, *BUS)).bus_url == "unix:///bus.sock"
    assert config.parse((*HOME, *DATABASE, "--bus-url-file", str(secret))).bus_url.startswith("scheme:")


@pytest.mark.parametrize("only", ["--terminate", "--hold"])
def test_what_only_touches_sandboxes_needs_no_secret(only: str) -> None:
    read = config.parse((*HOME, only))
    assert (read.database_url, read.bus_url) == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (*HOME, "--terminate", "--hold"),
        (*HOME, *BUS),
        (*HOME, *DATABASE),
        (*HOME, *DATABASE, "--database-url-file", "FILE", *BUS),
        (*HOME, *DATABASE, *BUS, "--bus-url-file", "FILE"),
        (*HOME, "--database-url-file", "/nonexistent", *BUS),
        (*HOME, "--database-url-file", "EMPTY", *BUS),
        (*HOME, *DATABASE, *BUS, "--driver", "none-such"),
    ],
    ids=[
        "two purposes",
        "no database",
        "no bus",
        "database twice",
        "bus twice",
        "missing file",
        "empty file",
        "unknown driver",
    ],
)
def test_mistakes_end_the_program_with_2(
    arguments: tuple[str, ...], secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    places = {"FILE": str(secret), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SystemExit) as ended:
        config.parse([places.get(word, word) for word in arguments])
    assert ended.value.code == 2
    assert "word@host" not in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["-1", "nan", "inf", "many"])
def test_a_rate_is_a_number_from_0_on(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.parse((*HOME, *DATABASE, *BUS, "--tool-calls-per-s", "0")).tool_calls_per_s == 0
    with pytest.raises(SystemExit):
        config.parse((*HOME, *DATABASE, *BUS, "--tool-calls-per-s", rate))
    assert "--tool-calls-per-s" in capsys.readouterr().err


def test_crews_networks_are_a_whole_subnet(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.parse((*HOME, *DATABASE, *BUS)).crew_networks == "10.213.0.0/16"
    assert (
        config.parse((*HOME, *DATABASE, *BUS, "--crew-networks", "10.9.0.0/20")).crew_networks
        == "10.9.0.0/20"
    )
    with pytest.raises(SystemExit):
        config.parse((*HOME, *DATABASE, *BUS, "--crew-networks", "10.9.0.1/20"))
    assert "has host bits set" in capsys.readouterr().err
