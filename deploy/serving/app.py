"""The application that `mmbm serve`, `serve run` and `serve deploy` start.

serve run deploy.serving.app:build bundle=runs/digits allow_anonymous=true
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deploy.serving.gateway import Gateway
from deploy.serving.guard import Guard
from deploy.serving.replica import Replica, check_space, scale
from deploy.serving.routes import make_routes
from deploy.serving.settings import MAX_REQUESTS, Application, ServeSettings, key_digests
from mmbm_core.errors import UsageError
from workers.serving.engine import ModelFacts, spaces_of

INGRESS = "Ingress"
_ANSWERS_S = 30.0
_ENDS_S = 15.0
"""After timeout_s, until the ingress has surely answered: killed sooner it would lose requests."""


@serve.deployment(name=INGRESS, max_ongoing_requests=MAX_REQUESTS, ray_actor_options={"num_cpus": 0.05})
@serve.ingress()
class Ingress:
    """Speaks HTTP; holds no model.

    Args:
        handles: of the models' deployments, by the name that clients use.
        digests: SHA-256 of each API key; () lets everybody in.
    """

    def __init__(
        self, handles: Mapping[str, DeploymentHandle], settings: ServeSettings, digests: tuple[str, ...]
    ) -> None:
        gateway = Gateway(handles, settings)
        self.guard = Guard(make_routes(gateway), settings, digests, metrics=gateway.metrics)

    def __serve_build_asgi_app__(self) -> Guard:
        return self.guard

    async def drain(self) -> int:
        """Take no more requests; returns how many still run."""
        self.guard.draining = True
        return self.guard.running


def build(args: dict[str, Any]) -> serve.Application:
    """The application of some models; `args` as `Application` has them.

    Raises:
        RayServeException: what is wrong with them. (Anything else Serve would try again.)
    """
    try:
        wanted = Application.model_validate(args)
        digests = key_digests(wanted.api_keys_file, allow_anonymous=wanted.allow_anonymous)
        check_spaces(wanted.named, allowed=wanted.allow_new_space)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise RayServeException("; ".join(lines)) from error
    except UsageError as error:
        raise RayServeException(str(error)) from error
    return assemble(wanted.named, wanted.settings, digests)


def assemble(models: dict[str, str], settings: ServeSettings, digests: tuple[str, ...]) -> serve.Application:
    """An ingress, and a deployment for each model.

    Args:
        models: what clients call each, and the model.
        digests: of the API keys; () lets everybody in.
    """
    handles = {name: _deployment(name, settings).bind(model, settings) for name, model in models.items()}
    ingress = Ingress.options(graceful_shutdown_timeout_s=settings.timeout_s + _ENDS_S)  # type: ignore[attr-defined]
    return ingress.bind(handles, settings, digests)  # type: ignore[no-any-return]


def _deployment(name: str, settings: ServeSettings) -> Any:
    scaling = {
        "min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas, "upscale_delay_s": 5,
        "downscale_delay_s": 120, "policy": {"policy_function": scale},
    }  # fmt: skip
    many = settings.max_replicas > settings.min_replicas
    return serve.deployment(
        Replica, name=deployment_name(name), max_ongoing_requests=4096, user_config={},
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        health_check_period_s=5, graceful_shutdown_timeout_s=settings.timeout_s,
        **({"autoscaling_config": scaling} if many else {"num_replicas": settings.min_replicas}),
    )  # fmt: skip


def deployment_name(model: str) -> str:
    """Of the deployment that clients call by this name."""
    return f"model-{model}"


def check_spaces(models: Mapping[str, str], *, allowed: bool) -> None:
    """Vectors that clients keep are comparable within one space only.

    Raises:
        UsageError: a model that is served now would give way to one of another space, and not `allowed`.
    """
    for name, model in {} if allowed else models.items():
        facts = _served_now(name)
        if facts is not None and facts.model != model:
            check_space(model, spaces_of(model), other=facts.model, spaces_other=facts.spaces)


async def _facts(name: str, app: str) -> ModelFacts:
    """Asked inside an event loop: with --throughput's flags handles work nowhere else."""
    handle = serve.get_deployment_handle(deployment_name(name), app)
    return await asyncio.wait_for(handle.facts.remote(), _ANSWERS_S)  # type: ignore[no-any-return]


def _served_now(name: str) -> ModelFacts | None:
    """What is served by a name on this cluster, if it answers.

    Its replicas are looked for by their actors' names: while an application is built Serve names none of its
    deployments.
    """
    actors = ray.util.list_named_actors(all_namespaces=True)
    replica = re.compile(rf"SERVE_REPLICA::(.+)#{re.escape(deployment_name(name))}#\w+")
    found = (replica.fullmatch(actor["name"]) for actor in actors)
    with contextlib.suppress(RayError, RayServeException, TimeoutError):
        for app in {match[1] for match in found if match}:
            return asyncio.run(_facts(name, app))
    return None
