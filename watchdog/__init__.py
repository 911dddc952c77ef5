"""Notice agents that went silent, and tell the factory, which makes the successor."""

from watchdog.core import Watchdog as Watchdog
