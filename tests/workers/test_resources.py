"""How many workers fit: the arithmetic, and what it refuses."""

from typing import Any

import pytest

from mmbm_core.errors import UsageError
from workers.resources import (
    COORDINATOR_CPUS,
    DECODE_CPUS,
    DEFAULT_WORKER_CPUS,
    PLANNER_CPUS,
    plan_workers,
)

GPU_NODE = {"CPU": 2.0, "GPU": 2.0}


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 96])
@pytest.mark.parametrize("placement", ["together", "per_modality", "decode_apart"])
def test_the_default_fits_whole(cpus: int, placement: str) -> None:
    found = plan_workers([{"CPU": float(cpus)}], placement=placement)
    beside = {"together": 0.0, "per_modality": COORDINATOR_CPUS, "decode_apart": COORDINATOR_CPUS + DECODE_CPUS}
    one_more = COORDINATOR_CPUS if placement != "together" else 0.0
    needed = found.workers * (found.cpus + beside[placement]) + one_more + PLANNER_CPUS
    assert needed <= cpus + 1e-9
    assert found.workers == cpus
    assert (found.device, found.gpus, found.threads) == ("cpu", 0, 1)


@pytest.mark.parametrize("cpus", [1, 2, 8])
def test_two_runs_fit_side_by_side(cpus: int) -> None:
    workers = plan_workers([{"CPU": float(cpus)}]).workers
    assert 2 * (workers * DEFAULT_WORKER_CPUS + PLANNER_CPUS) <= cpus + 1e-9


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([GPU_NODE], {}, (2, 1.0, "cuda")),
        ([GPU_NODE], {"gpus": 0.5, "device": "cpu"}, (4, 0.5, "cpu")),
        ([GPU_NODE], {"gpus": 0.4}, (4, 0.4, "cuda")),
        ([GPU_NODE], {"gpus": 2}, (1, 2, "cuda")),
        ([GPU_NODE], {"gpus": 0}, (2, 0, "cpu")),
        ([GPU_NODE], {"device": "cpu"}, (2, 0, "cpu")),
        ([{"CPU": 1.0, "GPU": 1.0}], {}, (1, 1.0, "cuda")),
        ([{"CPU": 1.0, "GPU": 1.0}], {"placement": "decode_apart"}, (1, 1.0, "cuda")),
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}], {}, (1, 1.0, "cuda")),
        ([{"CPU": 4.0}, {"CPU": 4.0}], {"cpus": 3}, (2, 0, "cpu")),
        ([{"CPU": 2.0}], {"workers": 3, "cpus": 0.5}, (3, 0, "cpu")),
    ],
)
def test_what_is_left_open_is_settled(
    nodes: list[dict[str, float]], asked: dict[str, Any], expected: tuple[int, float, str]
) -> None:
    found = plan_workers(nodes, **asked)
    assert (found.workers, found.gpus, found.device) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        ([{"CPU": 2.0}], {"gpus": 1}, "1 workers with 1 GPU each need 1 GPU, the cluster has 0"),
        ([{"CPU": 2.0}], {"gpus": 0.5}, "need 0.5 GPU, the cluster has 0"),
        ([{"CPU": 2.0}], {"device": "cuda"}, "the cluster has 0"),
        ([GPU_NODE], {"gpus": 1.5}, "a fraction below 1 or a whole number"),
        ([GPU_NODE], {"gpus": 0.5, "workers": 5}, "need 2.5 GPU, the cluster has 2"),
        ([{"CPU": 2.0}], {"workers": 5}, "room for 4"),
        ([{"CPU": 2.0}], {"workers": 4, "placement": "per_modality"}, "room for 3"),
        ([{"CPU": 2.0}], {"workers": 4, "placement": "decode_apart"}, "for placement=decode_apart"),
        ([{"CPU": 1.0}], {"cpus": 1}, "0.05 CPU to plan, do not fit: the cluster has 1 CPU"),
        ([{"CPU": 2.0}] * 2, {"cpus": 3}, "room for 0"),
        ([{"CPU": 2.0}], {"device": "tpu"}, "allowed: auto, cpu, cuda"),
    ],
)
def test_what_can_never_be_scheduled_is_refused(
    nodes: list[dict[str, float]], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan_workers(nodes, **asked)
