"""One worker tries the model; a sample that kills it is not tried for ever."""

from typing import Any

import pytest
import ray

from mmbm_core.media import DEFAULT_LIMITS
from workers.probe import Probe
from workers.settlement import Settlement

PROBE = Probe(
    model="minilm", samples={"text": ["a"]}, precision="fast", options={}, device="cpu", threads=1,
    limits=DEFAULT_LIMITS, budget={}, kernels=None,
)  # fmt: skip


@pytest.fixture
def settlement(ray_cluster: None) -> Any:
    return Settlement.remote(PROBE)  # type: ignore[attr-defined]


def test_the_first_to_ask_runs_the_probe(settlement: Any) -> None:
    assert ray.get(settlement.claim.remote("one")) == (PROBE, True)
    assert ray.get(settlement.claim.remote("two")) == (PROBE.without_samples(), False)
    waiting = settlement.result.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    told = {"kind": "UsageError", "message": "no such model", "traceback": ""}
    ray.get(settlement.report.remote(told))
    assert ray.get(waiting) == (told, 1)
    assert ray.get(settlement.claim.remote("one")) == (PROBE.without_samples(), False)


def test_a_sample_that_kills_twice_is_left_out_and_a_model_that_kills_ends_the_run(settlement: Any) -> None:
    probes = [ray.get(settlement.claim.remote("one")) for _ in range(3)]
    assert [mine for _, mine in probes] == [True] * 3
    assert [probe.samples["text"] for probe, _ in probes] == [["a"], ["a"], []]
    assert not ray.wait([settlement.result.remote()], timeout=0.2)[0]
    ray.get(settlement.claim.remote("one"))
    told, tries = ray.get(settlement.result.remote())
    assert told["kind"] == "RunError" and "killed when it loads minilm" in told["message"] and tries == 4


def test_nobody_goes_on_before_the_run_is_settled(settlement: Any) -> None:
    waiting = [settlement.spec.remote() for _ in range(3)]
    assert not ray.wait(waiting, num_returns=1, timeout=0.2)[0]
    ray.get(settlement.settle.remote("the spec"))
    assert ray.get(waiting) == ["the spec"] * 3
    assert ray.get(settlement.claim.remote("late")) == (None, False)
