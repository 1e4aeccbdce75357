"""Texts of many requests, generated together: each is what it is alone; those that leave or fail leave the rest."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mmbm_core.bundle import load_bundle
from mmbm_core.predict import Predictor, Row
from mmbm_core.tasks.generation import Generation, Sampling
from tests.bundles import make_talker, save_bundle
from tests.samples import image_file
from workers.serving.batcher import Expired, Overloaded
from workers.serving.writer import Write, Writer

TEXTS = ["the red disc", "two green rings", "no", "the red star and the blue ring"]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory, text_model: str) -> tuple[Predictor, list[Row]]:
    """A model, and rows for it."""
    bundle = load_bundle(save_bundle(tmp_path_factory.mktemp("talker") / "b", make_talker(text_model)))
    assert bundle.model is not None
    texts = bundle.prepare_values("text", TEXTS)
    images = bundle.prepare_values("image", [image_file(seed=n) for n in range(2)])
    rows: list[Any] = [{"text": text} for text in texts]
    return Predictor(bundle.model), [*rows, {"image": images[0]}, {"text": texts[0], "image": images[1]}]


def run(
    talker: tuple[Predictor, list[Row]], test: Callable[[Writer, list[Row]], Awaitable[None]], **options: Any
) -> None:
    predictor, rows = talker

    async def inside() -> None:
        writer = Writer(predictor, thread=ThreadPoolExecutor(1), **{"rows": 8, "queue": 100, **options})
        await asyncio.wait_for(test(writer, rows), 30)

    asyncio.run(inside())


async def said(writer: Writer, row: Row, work: Write, *, late_s: float = 0.0) -> tuple[str, int, str]:
    """Text, tokens and end."""
    await asyncio.sleep(late_s)
    pieces = [piece async for piece in writer.write(work, row)]
    assert all(not piece.end for piece in pieces[:-1])
    return "".join(piece.text for piece in pieces), sum(piece.tokens for piece in pieces), pieces[-1].end


def alone(talker: tuple[Predictor, list[Row]], row: Row, task: str = "answer") -> str:
    return talker[0].search(task, [row], beams=1)[0]


def test_requests_that_come_in_between_get_what_each_gets_alone(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        asks = [said(writer, row, Write("answer", Sampling()), late_s=0.004 * i) for i, row in enumerate(rows)]
        more = [said(writer, row, Write("german", Sampling()), late_s=0.01) for row in rows[:4]]
        found = await asyncio.gather(*asks, *more)
        assert [text for text, _, _ in found[:6]] == [alone(talker, row) for row in rows]
        assert [text for text, _, _ in found[6:]] == [alone(talker, row, "german") for row in rows[:4]]
        assert all(end in ("stop", "length") and 0 < tokens <= 24 for _, tokens, end in found)
        assert writer.counts.tokens == sum(tokens for _, tokens, _ in found)
        assert writer.counts.steps < writer.counts.tokens / 2  # they shared steps

    run(talker, test)


def test_no_more_run_at_once_than_there_is_room_for(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    step = Generation.step
    monkeypatch.setattr(Generation, "step", lambda run: (sizes.append(len(run)), step(run))[1])

    async def test(writer: Writer, rows: list[Row]) -> None:
        found = await asyncio.gather(*(said(writer, row, Write("answer", Sampling())) for row in rows))
        assert [text for text, _, _ in found] == [alone(talker, row) for row in rows]

    run(talker, test, rows=2)
    assert max(sizes) == 2


def test_a_text_ends_before_a_stop_and_makes_room(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        whole = alone(talker, rows[3])
        stop = whole[len(whole) // 2 :][:2]
        text, tokens, end = await said(writer, rows[3], Write("answer", Sampling(), (stop,)))
        assert text == whole[: whole.index(stop)] and end == "stop" and tokens < 24
        again = await said(writer, rows[0], Write("answer", Sampling()))
        assert again[0] == alone(talker, rows[0])

    run(talker, test, rows=1)


def test_who_leaves_takes_the_text_along(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        leaving = writer.write(Write("answer", Sampling()), rows[3])
        await anext(leaving)
        other = asyncio.create_task(said(writer, rows[0], Write("answer", Sampling())))
        await leaving.aclose()  # type: ignore[attr-defined]
        assert (await other)[0] == alone(talker, rows[0])
        await asyncio.sleep(0.05)
        assert writer.counts.tokens < 24 + 24

    run(talker, test, rows=1)


def test_a_full_queue_refuses_at_once(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        tasks = [asyncio.create_task(said(writer, rows[0], Write("answer", Sampling()))) for _ in range(3)]
        await asyncio.sleep(0)
        began = time.monotonic()
        with pytest.raises(Overloaded) as refused:
            await said(writer, rows[0], Write("answer", Sampling()))
        assert time.monotonic() - began < 0.05 and refused.value.retry_after_s > 0
        await asyncio.gather(*tasks)

    run(talker, test, rows=1, queue=3)


def test_a_deadline_ends_a_text_that_waits_and_one_that_runs(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        async def timed(deadline: float) -> None:
            async for _ in writer.write(Write("answer", Sampling()), rows[0], deadline=deadline):
                pass

        now = time.monotonic()
        late = await asyncio.gather(timed(now + 0.004), timed(now), return_exceptions=True)
        assert all(isinstance(each, Expired) for each in late), late
        assert (await said(writer, rows[0], Write("answer", Sampling())))[0] == alone(talker, rows[0])

    run(talker, test, rows=1)


def test_a_row_that_breaks_the_model_fails_alone(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, rows = talker
    represent = predictor.represent

    def picky(task: str, asked: list[Row]) -> Any:
        if any(row is rows[2] for row in asked):
            raise ValueError("this one")
        return represent(task, asked)

    monkeypatch.setattr(predictor, "represent", picky)

    async def test(writer: Writer, rows: list[Row]) -> None:
        asks = (said(writer, row, Write("answer", Sampling())) for row in rows[:4])
        found: list[Any] = list(await asyncio.gather(*asks, return_exceptions=True))
        assert isinstance(found.pop(2), ValueError)
        monkeypatch.undo()
        assert [text for text, _, _ in found] == [alone(talker, rows[i]) for i in (0, 1, 3)]

    run(talker, test)


def test_a_step_that_fails_fails_all_that_run_and_none_that_come(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Generation, "step", lambda run: torch.zeros(2) + torch.zeros(3))
            asks = (said(writer, row, Write("answer", Sampling())) for row in rows[:2])
            found = await asyncio.gather(*asks, return_exceptions=True)
            assert all(isinstance(each, RuntimeError) for each in found)
        assert (await said(writer, rows[0], Write("answer", Sampling())))[0] == alone(talker, rows[0])

    run(talker, test)


def test_a_seed_repeats_a_text(talker: Any) -> None:
    async def test(writer: Writer, rows: list[Row]) -> None:
        seeded = Write("answer", Sampling(temperature=1.0, seed=3))
        first = await said(writer, rows[0], seeded)
        beside = [said(writer, row, Write("answer", Sampling(temperature=1.0))) for row in rows]
        assert (await asyncio.gather(said(writer, rows[0], seeded), *beside))[0] == first

    run(talker, test)
