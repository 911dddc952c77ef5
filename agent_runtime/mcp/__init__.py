"""The agent as an MCP server: its tools, resources and prompts by JSON-RPC over HTTP, in both eras."""
