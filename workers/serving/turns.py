"""A task that works in turns, for as long as there is something to do."""

import asyncio
from abc import ABC, abstractmethod


class Turns(ABC):
    """What the batcher and the writer have in common."""

    def __init__(self) -> None:
        self.started: float | None = None
        """When the work that runs now in the model's thread began (time.monotonic); None: it is free."""
        self._closing = False
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Hold nothing once what waits is done."""
        self._closing = True
        self._ready.set()

    def _wake(self) -> None:
        """There is something to do."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._loop())
        self._ready.set()

    async def _loop(self) -> None:
        while True:
            await self._ready.wait()
            if not await self._turn():
                if self._closing:
                    return
                self._ready.clear()

    @abstractmethod
    async def _turn(self) -> bool:
        """Do what there is to do now. False, without having waited: there was nothing."""
