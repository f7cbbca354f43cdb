"""Agents that run at the same time: every step nests under the one that started it, whichever task it runs in.

One tool raises, so its task group cancels the other one: the steps say `failed` (with the error) and `cancelled`.

Run it with `python examples/async_agents.py`, then look at the steps with `stepwell ls`.
"""

import asyncio

import stepwell as sw
from stepwell.exporters.memory import MemoryExporter

TEMPERATURES = {"Jaipur": 31, "Patan": 34, "Delhi": 29}


@sw.tool
async def temperature(city: str) -> int:
    await asyncio.sleep(0)  # the other tasks go on here, as they would while a server answers
    return TEMPERATURES[city]


@sw.tool
async def forecast(city: str, asked: asyncio.Event) -> str:
    asked.set()
    return f"{city}: {await asyncio.Future()}"  # a server that never answers


@sw.tool
async def alerts(city: str, after: asyncio.Event) -> str:
    await after.wait()
    raise ConnectionError(f"no alerts for {city}")


@sw.run
async def report(city: str) -> str:
    return f"{city}: {await temperature(city)} degrees"


async def outlook(city: str) -> str:
    asked = asyncio.Event()
    async with sw.run("outlook", input=city) as step:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(forecast(city, asked))
                group.create_task(alerts(city, asked))
        except* ConnectionError as errors:
            step.metadata["gave up"] = str(errors.exceptions[0])
    return f"{city}: no outlook"


@sw.run
async def planner(cities: list[str]) -> list[str]:
    return [*await asyncio.gather(*map(report, cities)), await outlook(cities[0])]


def show(memory: MemoryExporter) -> None:
    depths: dict[str | None, int] = {None: -1}
    for step in sorted(memory.steps, key=lambda step: step.start_ns or 0):
        depths[step.id] = depths[step.parent_id] + 1
        print(f"{'  ' * depths[step.id]}{step.name}: {step.status} {step.error.message if step.error else ''}".rstrip())


if __name__ == "__main__":
    memory = MemoryExporter()
    sw.configure(export=["sqlite:", memory])
    asyncio.run(planner(list(TEMPERATURES)))
    delivered = sw.flush()
    show(memory)
    print("delivered:", delivered)
