"""The way out for crews that may have one: a CONNECT proxy on one unix socket per crew."""

from factory_server.egress.limits import EgressLimits
from factory_server.egress.proxy import EgressProxy

__all__ = ["EgressLimits", "EgressProxy"]
