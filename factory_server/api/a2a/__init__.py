"""A2A v1.0 on the factory's gRPC port: `tenant` is an agent's id, its tasks are RunTask's."""
