"""MCP servers that speak over standard input and output, run inside the sandbox as capabilities of the agent."""
