"""Show the warm pool and set its size."""

from __future__ import annotations

from factory_cli.client import CALL_WITHIN_S, Client
from factory_cli.output import Output, enum_name
from factory_cli.requests import new_id
from hyperfactory.v1 import factory_service_pb2


async def show(client: Client, out: Output, target: int | None, base: str) -> None:
    """Print the pools, after setting the size of one where `target` is given."""
    if target is not None:
        request = factory_service_pb2.UpdatePoolRequest(request_id=new_id(), base=base, target=target)
        await client.factory.UpdatePool(request, timeout=CALL_WITHIN_S)
    answer = await client.factory.GetPool(factory_service_pb2.GetPoolRequest(), timeout=CALL_WITHIN_S)
    if out.as_json:
        out.document(answer)
        return
    rows = [
        (pool.base, pool.target, pool.ready, pool.refilling, pool.claimed, pool.missed, _conditions(pool))
        for pool in answer.pools
    ]
    out.table(("BASE", "TARGET", "READY", "REFILLING", "CLAIMED", "MISSED", "CONDITIONS"), rows)


def _conditions(pool: factory_service_pb2.Pool) -> str:
    return ", ".join(f"{c.type}={enum_name(c, 'status')} {c.reason}".strip() for c in pool.conditions)
