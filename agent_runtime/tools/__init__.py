"""What an agent can do when asked by name: tools with a JSON Schema, and a registry that scopes them."""
