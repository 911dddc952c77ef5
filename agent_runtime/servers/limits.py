"""What one server may make the agent hold: messages, lists, files, questions and those who wait for answers."""

from __future__ import annotations

from typing import Final

from agent_runtime.limits import FILE_MAX_BYTES

# One line is one message, as large as a result may be in JSON.
SERVER_LINE_MAX_BYTES: Final = 4 * 1024 * 1024
# What is printed to the output between two messages: more is no server's log.
SERVER_GARBAGE_MAX_BYTES: Final = 4 * 1024 * 1024
SERVER_TOOLS_MAX: Final = 256
SERVER_RESOURCES_MAX: Final = 2048
SERVER_TEMPLATES_MAX: Final = 256
SERVER_PROMPTS_MAX: Final = 256
SERVER_PAGES_MAX: Final = 64
SERVER_SCHEMA_MAX_BYTES: Final = 64 * 1024
SERVER_ENTRY_MAX_BYTES: Final = 16 * 1024
SERVER_URI_MAX_CHARS: Final = 2048
SERVER_FILE_MAX_BYTES: Final = 64 * FILE_MAX_BYTES
SERVER_OPEN_FILES_MAX: Final = 1024

# Questions of one server that are open at once, and how long a person may take to answer one.
QUESTIONS_MAX: Final = 16
QUESTION_MAX_S: Final = 300.0
# Calls whose callers have been asked and are to come back with answers.
PARKED_MAX: Final = 16
# Resources that results have pointed to, and that somebody may read though no list has them.
LINKS_MAX: Final = 256
SUBSCRIBED_MAX: Final = 256

# A server that tells of changes without end, or of none, is asked for its lists less and less often.
CALM_FIRST_S: Final = 0.02
CALM_MAX_S: Final = 5.0
