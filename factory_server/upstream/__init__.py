"""Speak HTTP to agents over their sockets: a lean client that keeps few connections and streams both ways."""

from factory_server.upstream.connection import Answer, NotSent
from factory_server.upstream.pool import Upstreams

__all__ = ["Answer", "NotSent", "Upstreams"]
