"""What one server may make the agent hold: messages, lists, files."""

from __future__ import annotations

from typing import Final

from agent_runtime.limits import FILE_MAX_BYTES

# One line is one message, as large as a result may be in JSON.
SERVER_LINE_MAX_BYTES: Final = 4 * 1024 * 1024
SERVER_TOOLS_MAX: Final = 256
SERVER_PAGES_MAX: Final = 64
SERVER_SCHEMA_MAX_BYTES: Final = 64 * 1024
SERVER_FILE_MAX_BYTES: Final = 64 * FILE_MAX_BYTES
SERVER_OPEN_FILES_MAX: Final = 1024
