"""How many workers fit on the cluster. Asks Ray what the cluster has, never this machine's own hardware."""

from dataclasses import dataclass

import ray

from mmbm_core.errors import UsageError

PLANNER_CPUS = 0.05
COORDINATOR_CPUS = 0.05
"""Of a unit worker whose encoders are actors of their own; there is one more than there are encoders."""
DECODE_CPUS = 0.2
DEFAULT_WORKER_CPUS = 0.45
"""Two runs fit side by side, on one CPU too; a worker computes on a whole CPU all the same."""
GPU_WORKER_CPUS = 2.0
_BESIDE = {"together": 0.0, "per_modality": COORDINATOR_CPUS, "decode_apart": COORDINATOR_CPUS + DECODE_CPUS}
"""CPUs that each encoder's worker needs beside its own, by placement."""


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What each of `workers` actors reserves, and the threads it computes with."""

    workers: int
    cpus: float
    gpus: float
    device: str
    threads: int

    def describe(self) -> str:
        return f"{self.workers} workers with {self.cpus:g} CPU and {self.gpus:g} GPU each on {self.device}"


def living_nodes() -> list[dict[str, float]]:
    """What each node of the cluster that Ray is connected to has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def plan_workers(
    nodes: list[dict[str, float]],
    *,
    workers: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    device: str = "auto",
    placement: str = "together",
) -> WorkerResources:
    """Settle what was left open and refuse what can never be scheduled.

    Args:
        nodes: as of `living_nodes`, such as {"CPU": 8, "GPU": 1}.
        device: `auto` takes GPUs where the cluster has them.

    Raises:
        UsageError: the arithmetic does not come out.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {device!r} is unknown; allowed: auto, cpu, cuda")
    total_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    total_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    wants_gpu = device == "cuda" or bool(gpus) or (device == "auto" and gpus is None and total_gpus > 0)
    if gpus is None:
        gpus = 1.0 if wants_gpu and device != "cpu" else 0.0
    if gpus and total_gpus < min(gpus, 1.0) * (workers or 1):
        raise UsageError(
            f"{workers or 1} workers with {gpus:g} GPU each need {gpus * (workers or 1):g} GPU, the cluster has "
            f"{total_gpus:g}; use gpus_per_worker=0, or start Ray where there is a GPU"
        )
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"gpus_per_worker={gpus:g} can't be scheduled; allowed: a fraction below 1 or a whole number")
    beside = _BESIDE[placement]
    if cpus is None:
        share = 0.8 * total_cpus / max(1, total_gpus / gpus) - beside if gpus else 0.0
        cpus = min(GPU_WORKER_CPUS, share) if share > 0 else DEFAULT_WORKER_CPUS
    reserved = PLANNER_CPUS + (COORDINATOR_CPUS if beside else 0.0)
    fits = sum(_fits(node, cpus + beside, gpus) for node in _reserve(nodes, reserved))
    if workers is None:
        workers = fits if gpus or cpus != DEFAULT_WORKER_CPUS else min(fits, max(1, int(total_cpus)))
    if workers < 1 or workers > fits:
        each = f"{cpus:g} CPU" + (f" (and {beside:g} for placement={placement})" if beside else "")
        raise UsageError(
            f"{max(workers, 1)} workers with {each} and {gpus:g} GPU each, and {reserved:g} CPU to plan, do not "
            f"fit: the cluster has {total_cpus:g} CPU and {total_gpus:g} GPU on {len(nodes)} nodes, room for {fits}"
        )
    return WorkerResources(
        workers=workers, cpus=round(cpus, 3), gpus=gpus, device="cuda" if wants_gpu and device != "cpu" else "cpu",
        threads=max(1, int(cpus)),
    )  # fmt: skip


def _reserve(nodes: list[dict[str, float]], cpus: float) -> list[dict[str, float]]:
    """The planner takes its share on the node with the most CPUs."""
    most = max(range(len(nodes)), key=lambda i: nodes[i].get("CPU", 0.0), default=None)
    return [{**n, "CPU": n.get("CPU", 0.0) - (cpus if i == most else 0.0)} for i, n in enumerate(nodes)]


def _fits(node: dict[str, float], cpus: float, gpus: float) -> int:
    by_cpu = int(node.get("CPU", 0.0) / cpus + 1e-9) if cpus else 1 << 30
    if not gpus:
        return by_cpu
    per_gpu = int(1 / gpus + 1e-9) if gpus <= 1 else 1
    gpu_slots = int(node.get("GPU", 0.0)) * per_gpu if gpus <= 1 else int(node.get("GPU", 0.0) // gpus)
    return min(by_cpu, gpu_slots)
