"""The revisions of MCP that we speak, and the names that they give to things."""

from __future__ import annotations

from typing import Final

# Stateless: each request says its revision and the client's capabilities itself.
STATELESS: Final = "2026-07-28"
# `initialize` comes first and agrees on one of these; the newest first.
HANDSHAKE: Final = ("2025-11-25", "2025-06-18")
SUPPORTED: Final = (STATELESS, *HANDSHAKE)

PATH: Final = "/mcp"
ACCEPTED: Final = "application/json, text/event-stream"

# HTTP headers, in the lower case in which servers keep them.
VERSION_HEADER: Final = "mcp-protocol-version"
METHOD_HEADER: Final = "mcp-method"
NAME_HEADER: Final = "mcp-name"
PARAM_PREFIX: Final = "mcp-param-"
SESSION_HEADER: Final = "mcp-session-id"

# Keys of `_meta`.
PREFIX: Final = "io.modelcontextprotocol/"
META_VERSION: Final = PREFIX + "protocolVersion"
META_CLIENT_INFO: Final = PREFIX + "clientInfo"
META_CLIENT_CAPABILITIES: Final = PREFIX + "clientCapabilities"
META_LOG_LEVEL: Final = PREFIX + "logLevel"
META_SUBSCRIPTION: Final = PREFIX + "subscriptionId"
META_SERVER_INFO: Final = PREFIX + "serverInfo"
META_PROGRESS_TOKEN: Final = "progressToken"
SKILLS_EXTENSION: Final = PREFIX + "skills"

# Which member of the parameters the header `Mcp-Name` repeats.
NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

# What `subscriptions/listen` may ask for, and the notification that it brings.
LISTENABLE: Final = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}
TOOLS_CHANGED: Final = LISTENABLE["toolsListChanged"]
PROMPTS_CHANGED: Final = LISTENABLE["promptsListChanged"]
RESOURCES_CHANGED: Final = LISTENABLE["resourcesListChanged"]
RESOURCE_UPDATED: Final = "notifications/resources/updated"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
PROGRESS: Final = "notifications/progress"
LOGGED: Final = "notifications/message"
CANCELLED: Final = "notifications/cancelled"

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
