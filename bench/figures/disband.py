"""How long it takes until a crew of 10 is gone."""

from __future__ import annotations

from bench.bench import Bench, attempt
from bench.line import Line, Result
from bench.samples import Samples

SIZE = 10
HOW = (
    "DisbandCrew of a READY crew of 10 through the gateway; it answers when instances, network, credentials and "
    "routes are gone."
)


async def measure(bench: Bench) -> Result:
    """Cold crews, disbanded at once."""
    took, floor = Samples(), Samples()
    await bench.set_pool(0)
    for _ in range(bench.some(0.3)):
        crew = (await bench.assemble(SIZE)).crew
        quiet = await bench.gate.wait()
        floor.add(await bench.floors.call_and_commit(), quiet=quiet)
        async with attempt(bench, took) as timer:
            await bench.disband(crew.id)
            timer.mark(took)
    line = Line("disband a crew of 10", took, floor=floor, floor_name="empty RPC + one commit")
    return Result("disband", HOW, [line])
