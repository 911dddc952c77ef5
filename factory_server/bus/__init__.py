"""The crews' shared bus on Redis or Valkey."""

from factory_server.bus.redis import RedisBus

__all__ = ["RedisBus"]
