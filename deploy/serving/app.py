"""The application that `mmbm serve`, `serve run` and `serve deploy` start.

serve run deploy.serving.app:build bundle=runs/digits allow_anonymous=true
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deploy.serving.gateway import Gateway
from deploy.serving.guard import Guard
from deploy.serving.replica import Replica, ReplicaSettings, scale
from deploy.serving.routes import make_routes
from deploy.serving.settings import Application, ServeSettings, key_digests
from mmbm_core.errors import UsageError
from workers.serving.engine import ModelFacts, spaces_of

INGRESS = "Ingress"
_ANSWERS_S = 30.0
_ENDS_S = 15.0
"""After timeout_s, until the ingress has surely answered: killed sooner it would lose requests."""


class IngressSettings(BaseModel):
    """What the ingress lets in, and for which models; Serve hands changed ones to replicas that run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...]
    settings: ServeSettings
    digests: tuple[str, ...]
    """SHA-256 of each API key; none lets everybody in."""


@serve.deployment(name=INGRESS, max_ongoing_requests=2048, ray_actor_options={"num_cpus": 0.05})
@serve.ingress()
class Ingress:
    """Speaks HTTP; holds no model.

    Args:
        handles: of the models' deployments. (They make these a part of the application; `reconfigure` names them.)
    """

    def __init__(self, handles: Sequence[DeploymentHandle]) -> None:
        self.gateway = Gateway()
        self.guard = Guard(make_routes(self.gateway), metrics=self.gateway.metrics)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Serve these models with these settings and keys from now on."""
        wanted = IngressSettings.model_validate(config)
        handles = {name: serve.get_deployment_handle(deployment_name(name)) for name in wanted.models}
        self.gateway.configure(handles, wanted.settings)
        self.guard.configure(wanted.settings, wanted.digests)

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
    handles = [_deployment(name, model, settings).bind() for name, model in models.items()]
    config = IngressSettings(models=tuple(models), settings=settings, digests=digests).model_dump(mode="json")
    ingress = Ingress.options(  # type: ignore[attr-defined]
        user_config=config, graceful_shutdown_timeout_s=settings.timeout_s + _ENDS_S
    )
    return ingress.bind(handles)  # type: ignore[no-any-return]


def _deployment(name: str, model: str, settings: ServeSettings) -> Any:
    scaling = {
        "min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas, "upscale_delay_s": 5,
        "downscale_delay_s": 120, "policy": {"policy_function": scale},
    }  # fmt: skip
    many = settings.max_replicas > settings.min_replicas
    return serve.deployment(
        Replica, name=deployment_name(name), max_ongoing_requests=4096,
        user_config=ReplicaSettings(model=model, settings=settings).model_dump(mode="json"),
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
        if facts is not None and facts.model != model and _values(facts.spaces) != _values(found := spaces_of(model)):
            raise UsageError(
                f"{name}: {model} has another vector space ({', '.join(found.values())}) than {facts.model}, which is "
                f"served now ({', '.join(facts.spaces.values())}): vectors that clients keep would no longer compare. "
                "Serve it by another name, or set allow_new_space: true"
            )


def _values(spaces: Mapping[str, str]) -> list[str]:
    return sorted(spaces.values())


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
