"""Print for people or for programs; with `--json`, stdout carries JSON and nothing else."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

WIDTH_COLUMNS = 1_000
"""A row stays one line however wide: ids are there to be copied, and pipes to be read line by line."""
_STATE_STYLES = {
    "READY": "green",
    "BUSY": "cyan",
    "ACKED": "green",
    "ok": "green",
    "DEGRADED": "yellow",
    "WARMING": "yellow",
    "PROVISIONING": "yellow",
    "ASSEMBLING": "yellow",
    "degraded": "yellow",
    "UNHEALTHY": "red",
    "FAILED": "red",
    "missing": "red",
    "REJECTED": "red",
    "EXPIRED": "red",
    "UNREACHABLE": "red",
}
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What makes a terminal do something, or show a line in another order than it was written."""


class Output:
    """Where a command's results go."""

    def __init__(
        self, *, as_json: bool, stdout: IO[str] | None = None, stderr: IO[str] | None = None
    ) -> None:
        self.as_json = as_json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr

    @property
    def live(self) -> bool:
        """Whether somebody watches a terminal, so that a picture may be redrawn in place."""
        return not self.as_json and self.stdout.isatty()

    def document(self, value: Any) -> None:
        """Print one JSON document, indented."""
        self._write(_json(plain(value), indent=2))

    def line(self, value: Any) -> None:
        """Print one line of JSON: an item of a stream."""
        self._write(_json(plain(value)))

    def text(self, line: str = "") -> None:
        """Say something to people; programs do not see it."""
        if not self.as_json:
            self._write(harmless(line))

    def pass_on(self, text: str) -> None:
        """Print what an agent wrote: to files and pipes as it is, to a terminal without what drives that."""
        self.stdout.write(harmless(text) if self.stdout.isatty() else text)
        self.stdout.flush()

    def note(self, line: str) -> None:
        """Say something beside the result."""
        self.stderr.write(f"{harmless(line)}\n")
        self.stderr.flush()

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
        """Print aligned columns to people."""
        if self.as_json:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        terminal = self.stdout.isatty()
        sheet = StringIO()
        console = Console(file=sheet, width=WIDTH_COLUMNS, force_terminal=terminal)
        table = Table(
            box=None,
            pad_edge=False,
            header_style="bold",
            title=title,
            title_justify="left",
            show_header=any(columns),
        )
        for column in columns:
            table.add_column(column, no_wrap=True)
        for row in rows:
            cells = [harmless(str(cell)) for cell in row]
            table.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in cells))
        console.print(table)
        self._write("\n".join(line.rstrip() for line in sheet.getvalue().splitlines()))

    def _write(self, text: str) -> None:
        self.stdout.write(f"{text}\n")
        self.stdout.flush()


def harmless(text: str) -> str:
    """Show control characters instead of sending them: names, texts and errors may come from an agent."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _json(value: Any, indent: int | None = None) -> str:
    # JSON escapes most of them by itself; those that it leaves stand within its strings.
    return harmless(json.dumps(value, indent=indent, ensure_ascii=False))


def plain(value: Any) -> Any:
    """Turn messages into what the JSON module knows; everything else stays."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return message_dict(value) if hasattr(value, "DESCRIPTOR") else value


def message_dict(message: Message) -> dict[str, Any]:
    """Write a message as proto3 JSON, empty fields included, so that its shape does not depend on its data."""
    from google.protobuf.json_format import MessageToDict
    from google.rpc import error_details_pb2  # noqa: F401  receipts carry them in an Any

    return dict(whole(MessageToDict(message, always_print_fields_with_no_presence=True)))


def whole(value: Any) -> Any:
    """Write whole numbers without a fraction: a Struct knows only floats."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def free_json(value: Message) -> Any:
    """Write a Struct or a Value, keys sorted: in the message they have no order, and each process has another."""
    from google.protobuf.json_format import MessageToDict

    return _sorted(whole(MessageToDict(value)))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def enum_name(message: Message, field: str) -> str:
    """Name an enum field's value without its type's prefix, as `READY`."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    if kind is None:
        raise TypeError(f"'{field}' is no enum")
    number = getattr(message, field)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = kind.values_by_number.get(number)
    return value.name.removeprefix(prefix) if value else str(number)
