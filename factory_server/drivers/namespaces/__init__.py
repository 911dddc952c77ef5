"""The embedded sandbox: Linux namespaces by plain Python, and a fork server that holds the warm imports."""
