"""The factory over HTTP/1.1: REST, MCP, chat and agent cards behind the guard that gRPC has."""
