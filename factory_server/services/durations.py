"""Read the contract's durations."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def seconds(duration: Duration, default: float = 0.0) -> float:
    """A proto duration in seconds; the default where it is not set."""
    return duration.seconds + duration.nanos / 1e9 if duration.seconds or duration.nanos else default
