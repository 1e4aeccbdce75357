"""How a model is trained: the `training` part of a recipe."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mmbm_core.balance import BalancerConfig, StaticConfig
from mmbm_core.sample import Modality


class WeakFirst(BaseModel):
    """The modality that joint training would neglect is trained alone at first (G2D, arXiv 2506.21514)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Modality
    epochs: Annotated[int, Field(ge=1)]


class TrainingSettings(BaseModel):
    """Optimisation, its length, and what it looks at; `--set key=value` sets one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Rows a step, over all workers."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts a worker's share of a batch is computed in, one after the other, to need less memory."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of what starts from scratch: adapters, fusion, heads."""
    encoder_lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate of pretrained encoders."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps in which the learning rate rises; then it falls as a cosine."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Longest gradient, as a Euclidean norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the hardware computes it faster."""
    balancer: BalancerConfig = StaticConfig(kind="static")
    weak_first: WeakFirst | None = None
    ogm_ge: Annotated[float, Field(gt=0)] | None = None
    """Alpha of OGM-GE for two trained encoders with unimodal logits; None: off."""
    metric: str | None = None
    """TASK/METRIC on validation rows that chooses the best weights; None: that of the first task. With modality
    dropout, its mean over all subsets of the modalities; TASK/METRIC[image] is that of one."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Evaluations without a better metric after which training stops; None: never."""
    evaluations: Annotated[int, Field(ge=1)] = 10
    """How often the validation rows are scored, spread over the training."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of weights that is kept instead of the last ones; 0 keeps the last ones."""
    checkpoint_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between checkpoints: at most so much is lost when a worker dies."""
    seed: int = 0
    workers: Annotated[int, Field(ge=1)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
