"""A lean HTTP/1.1 server for the agent's own socket: bounded in everything, streams included."""
