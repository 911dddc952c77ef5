"""Every bound of the runtime in one place, with its unit last and its reason beside it."""

from __future__ import annotations

from typing import Final

# One agent is one small process in a 512 MiB sandbox: more at once would only queue inside it.
TASKS_MAX: Final = 8
CHATS_MAX: Final = 16
TOOL_CALLS_MAX: Final = 16
SUBPROCESSES_MAX: Final = 16
THREADS_MAX: Final = 4

# Messages: the state blob is by far the largest thing that travels.
STATE_MAX_BYTES: Final = 16 * 1024 * 1024
MESSAGE_MAX_BYTES: Final = STATE_MAX_BYTES + 1024 * 1024
RESULT_MAX_BYTES: Final = 2 * 1024 * 1024
REPORT_MAX_BYTES: Final = 8 * 1024 * 1024
VALUE_MAX_BYTES: Final = 256 * 1024

MEMORY_KEYS_MAX: Final = 10_000
MEMORY_KEY_MAX_CHARS: Final = 256
MEMORY_MAX_BYTES: Final = 12 * 1024 * 1024  # leaves room in the blob for the profile's own state

# Signals: a repeat is recognised as long as its id is among the newest.
SIGNALS_REMEMBERED_MAX: Final = 4096
SIGNALS_QUEUED_MAX: Final = 4096
SIGNAL_HANDLER_MAX_S: Final = 30.0
RECEIPTS_BATCH_MAX: Final = 256

PROGRESS_QUEUED_MAX: Final = 64
TASK_MAX_S: Final = 3600.0
TOOL_DEFAULT_S: Final = 60.0
# Skill packs: a little less than the factory waits for an unmount.
SKILLS_MAX: Final = 64
SKILL_CALLS_END_S: Final = 15.0
START_MAX_S: Final = 20.0
SUSPENDED_MAX_S: Final = 60.0

CHAT_TOOL_ROUNDS_DEFAULT: Final = 16
CHAT_DELTA_MAX_CHARS: Final = 64
MODEL_ANSWER_DEFAULT_S: Final = 60.0
MODEL_RETRIES_DEFAULT: Final = 2

PEERS_MAX: Final = 1000
PEER_CHANNELS_MAX: Final = 256
PEER_CALL_DEFAULT_S: Final = 60.0
PEER_CHANNEL_GRACE_S: Final = 30.0

BUS_CONNECTIONS_MAX: Final = 4
BUS_SUBSCRIPTIONS_MAX: Final = 32
BUS_COMMAND_MAX_S: Final = 5.0
BUS_RECONNECT_FIRST_S: Final = 0.02
BUS_RECONNECT_MAX_S: Final = 1.0
BUS_BLOCK_MS: Final = 2000
BUS_STREAM_MAX_ENTRIES: Final = 10_000
BUS_READ_MAX_ENTRIES: Final = 128
BUS_REPLY_MAX_BYTES: Final = 64 * 1024 * 1024
CONTEXT_ATTEMPTS_MAX: Final = 64

EGRESS_CONNECTIONS_MAX: Final = 32
EGRESS_DIAL_MAX_S: Final = 5.0

FILE_MAX_BYTES: Final = 1024 * 1024
FILES_LISTED_MAX: Final = 1000
PATH_MAX_CHARS: Final = 1024
OUTPUT_MAX_BYTES: Final = 64 * 1024
OPEN_FILES_MAX: Final = 256
