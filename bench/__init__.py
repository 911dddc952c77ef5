"""Measure a running stack, each figure beside its floor in the same run."""

from __future__ import annotations

import os

# Our children exec at once: grpc need not prepare for forks, nor warn of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
