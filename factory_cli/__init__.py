"""The operator's commands: a client of the contract, and the embedded stack in one place."""
