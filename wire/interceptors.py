"""Guard every call: who calls, whether they may, whether the request is sound; errors become statuses."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from wire.errors import DeadlineExceeded, Denied, FactoryError, Internal, Unimplemented
from wire.peers import GenerationCheck, PeerReader, Verifier
from wire.policy import Caller, PolicyTable, Principal, Resource, Row, authorize, set_caller
from wire.requests import RequestReader, Validator
from wire.status import abort, code_of
