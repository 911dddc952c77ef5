"""The figures, one module each, in the order they are measured: what loads the machine comes last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from bench.bench import Bench
from bench.figures import (
    append,
    broadcast,
    crews,
    disband,
    fanout,
    gateway,
    heal,
    hibernate,
    hundred,
    idle,
    spawn,
    tools,
    unary,
)
from bench.line import Result

FIGURES: Mapping[str, Callable[[Bench], Awaitable[Result]]] = {
    "spawn": spawn.measure,
    "crews": crews.measure,
    "heal": heal.measure,
    "hibernate": hibernate.measure,
    "disband": disband.measure,
    "unary": unary.measure,
    "gateway": gateway.measure,
    "append": append.measure,
    "fanout": fanout.measure,
    "hundred": hundred.measure,
    "idle": idle.measure,
    "broadcast": broadcast.measure,
    "tools": tools.measure,
}
