"""The crews' shared bus on Redis or Valkey."""

from factory_server.bus.redis import RedisBus
from factory_server.bus.vector_sets import RedisVectorSets

__all__ = ["RedisBus", "RedisVectorSets"]
