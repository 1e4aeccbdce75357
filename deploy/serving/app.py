"""The application that `mmbm serve`, `serve run` and `serve deploy` start.

serve run deploy.serving.app:build bundle=runs/digits allow_anonymous=true
"""

from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle

from deploy.serving.gateway import Gateway
from deploy.serving.guard import Guard
from deploy.serving.replica import Replica
from deploy.serving.routes import make_routes
from deploy.serving.settings import Application, ServeSettings, key_digests
from mmbm_core.errors import UsageError

INGRESS = "Ingress"


@serve.deployment(name=INGRESS, max_ongoing_requests=2048, ray_actor_options={"num_cpus": 0.05})
@serve.ingress()
class Ingress:
    """Speaks HTTP; holds no model."""

    def __init__(self, handles: dict[str, DeploymentHandle], settings: ServeSettings, digests: tuple[str, ...]) -> None:
        self.gateway, self.digests = Gateway(handles, settings), digests

    def __serve_build_asgi_app__(self) -> Guard:
        settings = self.gateway.settings
        self.guard = Guard(
            make_routes(self.gateway), key_digests=self.digests, body_bytes=settings.body_bytes,
            body_s=settings.timeout_s, metrics=self.gateway.metrics,
        )  # fmt: skip
        return self.guard

    async def drain(self) -> int:
        """Take no more requests; returns how many still run."""
        self.guard.draining = True
        return self.guard.running


def build(args: dict[str, Any]) -> serve.Application:
    """The application of some models; `args` as `Application` has them.

    Raises:
        UsageError: what is wrong with them.
    """
    try:
        wanted = Application.model_validate(args)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("; ".join(lines)) from error
    digests = key_digests(wanted.api_keys_file, allow_anonymous=wanted.allow_anonymous)
    return assemble(wanted.named, wanted.settings, digests)


def assemble(models: dict[str, str], settings: ServeSettings, digests: tuple[str, ...]) -> serve.Application:
    """An ingress, and a deployment for each model.

    Args:
        models: what clients call each, and the model.
        digests: of the API keys; () lets everybody in.
    """
    handles = {name: _deployment(name, settings).bind(model, settings) for name, model in models.items()}
    return Ingress.bind(handles, settings, digests)  # type: ignore[attr-defined, no-any-return]


def _deployment(name: str, settings: ServeSettings) -> Any:
    many = settings.max_replicas > 1
    scaling = {
        "min_replicas": settings.min_replicas, "max_replicas": max(settings.min_replicas, settings.max_replicas),
        "target_ongoing_requests": 32, "upscale_delay_s": 5, "downscale_delay_s": 120,
    }  # fmt: skip
    return serve.deployment(
        Replica, name=f"model-{name}", max_ongoing_requests=4096,
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        health_check_period_s=5, graceful_shutdown_timeout_s=settings.timeout_s,
        **({"autoscaling_config": scaling} if many else {"num_replicas": settings.min_replicas}),
    )  # fmt: skip
