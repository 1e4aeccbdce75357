"""A replica takes another model over while it answers; how many replicas there should be."""

import asyncio
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.serving.app import check_spaces
from deploy.serving.replica import LOAD, Answer, Replica, scale
from deploy.serving.settings import ServeSettings
from mmbm_core.bundle import load_bundle
from mmbm_core.errors import UsageError
from tests.checkpoints import save_text_model
from workers.serving.engine import Embed

ROW = {"text": "a red disc"}


async def replica_of(model: str, **settings: Any) -> Replica:
    replica = Replica(model, ServeSettings(**settings))
    await replica.reconfigure({})
    return replica


def vector(model: str) -> np.ndarray:
    return np.array(load_bundle(model).embed([ROW])["text_embedding"][0].as_py())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_text_model(tmp_path_factory.mktemp("other-model"), seed=1)


@pytest.mark.slow
def test_another_model_takes_over_while_requests_are_answered(text_model: str, other: str) -> None:
    async def test() -> None:
        replica = await replica_of(text_model)
        old = weakref.ref(replica._loaded.engine)
        answers: list[Answer] = []

        async def ask() -> None:
            while not over:
                answers.append(await replica.ask(Embed(), [ROW], 30.0))

        over: list[bool] = []
        asking = [asyncio.create_task(ask()) for _ in range(4)]
        await asyncio.sleep(0.2)
        await replica.reconfigure({"model": other, "allow_new_space": True})
        await asyncio.sleep(0.2)
        over.append(True)
        await asyncio.gather(*asking)
        assert {answer.failed for answer in answers} == {""}
        before, after = vector(text_model), vector(other)
        near = [[np.allclose(a.results[0], v, atol=1e-4) for v in (before, after)] for a in answers]
        assert [True, False] in near and near[-1] == [False, True] and [False, False] not in near
        assert (await replica.facts()).model == other
        for _ in range(50):
            await asyncio.sleep(0.02)
            gc.collect()
        assert old() is None  # nothing holds on to the old model

    asyncio.run(test())


def test_a_model_that_does_not_work_changes_nothing(text_model: str, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(UsageError):
            await replica_of(str(tmp_path / "nothing"))
        replica = await replica_of(text_model)
        for wrong in ({"model": str(tmp_path / "nothing")}, {"modle": text_model}):
            await replica.reconfigure(wrong)
            facts = await replica.facts()
            assert facts.model == text_model and "Error: the model that was deployed last" in facts.update_error
            answer = await replica.ask(Embed(), [ROW], 30.0)
            np.testing.assert_allclose(answer.results[0], vector(text_model), atol=1e-4)
        await replica.reconfigure({})
        assert (await replica.facts()).update_error == ""

    asyncio.run(test())


def test_another_space_is_refused_unless_told(text_model: str, other: str) -> None:
    async def test() -> None:
        replica = await replica_of(text_model)
        await replica.reconfigure({"model": other})
        facts = await replica.facts()
        assert facts.model == text_model and "UsageError" in facts.update_error
        fresh = Replica(text_model, ServeSettings())  # as Serve starts one where another died
        with pytest.raises(UsageError, match="another vector space"):
            await fresh.reconfigure({"model": other})
        for each in (replica, fresh):
            await each.reconfigure({"model": other, "allow_new_space": True})
            facts = await each.facts()
            assert (facts.model, facts.update_error) == (other, "")
            await each.reconfigure({"model": other})  # what fails in one that starts anew is told by those that run
            assert "UsageError" in (await each.facts()).update_error

    asyncio.run(test())


def test_an_application_of_another_space_is_refused_unless_told(
    text_model: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def served() -> Any:
        return await (await replica_of(text_model)).facts()

    facts = asyncio.run(served())
    monkeypatch.setattr("deploy.serving.app._served_now", lambda name: facts if name == "m" else None)
    with pytest.raises(UsageError, match="another vector space"):
        check_spaces({"m": other}, allowed=False)
    check_spaces({"m": other}, allowed=True)
    check_spaces({"new": other}, allowed=False)
    check_spaces({"m": text_model}, allowed=False)


@pytest.mark.parametrize(
    ("loads", "expected"), [([0.0], 1), ([2.0], 1), ([2.1], 2), ([9.0, 4.0], 4), ([1.0, 1.0, 0.0], 1), ([], 2)]
)
def test_so_many_replicas_as_there_are_batches_for(loads: list[float], expected: int) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={LOAD: dict(enumerate(loads))} if loads else {}, current_num_replicas=2,
        capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4, policy_state={},
    )  # fmt: skip
    assert scale(context)[0] == expected


def test_a_replica_tells_its_load(text_model: str) -> None:
    async def test() -> None:
        replica = await replica_of(text_model, batch_cost=0.001)
        asking = [asyncio.create_task(replica.ask(Embed(), [ROW], 30.0)) for _ in range(20)]
        most = 0.0
        while not all(task.done() for task in asking):
            most = max(most, (await replica.record_autoscaling_stats())[LOAD])
            await asyncio.sleep(0)
        assert most > 5
        assert (await replica.record_autoscaling_stats())[LOAD] == 0

    asyncio.run(test())
