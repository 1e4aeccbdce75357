"""From a request to the model that it names, and what goes wrong on the way."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deploy.serving.errors import ApiError
from deploy.serving.inputs import Row
from deploy.serving.metrics import Metrics
from deploy.serving.replica import Answer
from deploy.serving.settings import ServeSettings
from mmbm_core.errors import MediaError
from workers.serving.engine import Embed, ModelFacts
from workers.serving.writer import Write

_ATTEMPTS = 2
"""A replica may die under a request; nothing that is asked of a model changes it, so another one is asked."""
_SLACK_S = 1.0
"""A replica itself ends what takes too long; this much later the ingress does."""
_FACTS_S = 10.0
"""A model tells at once what it is, once it is loaded."""
_CANARY: Row = {"text": "canary"}


class Gateway:
    """The models that are served.

    Args:
        handles: of their deployments, by the name that clients use.
    """

    def __init__(self, handles: Mapping[str, Any], settings: ServeSettings) -> None:
        self.handles, self.settings, self.metrics = dict(handles), settings, Metrics()
        self.created = int(time.time())
        self._facts: dict[str, ModelFacts] = {}

    def resolve(self, model: str) -> str:
        """The name of the model that a request wants.

        Raises:
            ApiError: no model of this name, or none named where there are several.
        """
        if model in self.handles:
            return model
        known = ", ".join(self.handles)
        if model:
            raise ApiError(404, f"there is no such model; there are: {known}", code="model_not_found", param="model")
        if len(self.handles) > 1:
            raise ApiError(400, f"name a model; there are: {known}", code="model_missing", param="model")
        return next(iter(self.handles))

    async def facts(self, model: str, *, fresh: bool = False) -> ModelFacts:
        """What a model is; `fresh` asks it again.

        Raises:
            ApiError: it does not answer.
        """
        if fresh or model not in self._facts:
            try:
                async with asyncio.timeout(_FACTS_S if fresh else self.settings.timeout_s):
                    self._facts[model] = await self.handles[model].facts.remote()
            except (RayError, DeploymentUnavailableError, TimeoutError) as error:
                raise _unavailable(model) from error
        return self._facts[model]

    async def each_facts(self) -> dict[str, ModelFacts]:
        """What each model is now, of those that answer."""
        found = {}

        async def ask(model: str) -> None:
            with contextlib.suppress(ApiError):
                found[model] = await self.facts(model, fresh=True)

        await asyncio.gather(*map(ask, self.handles))
        return {model: found[model] for model in self.handles if model in found}

    async def ask(self, model: str, work: Hashable, rows: Sequence[Row], *, params: Sequence[str]) -> Answer:
        """What a model says of the rows.

        Args:
            params: where in the request each row comes from, such as `input[3]`.

        Raises:
            ApiError: a row can't be used, or there is no answer.
        """
        await self.facts(model)  # one that does not load is unavailable, not slow
        answer = await self._attempt(model, work, rows)
        self._check(model, answer, params)
        self.metrics.work(model=model, work=type(work).__name__.lower(), items=len(rows), tokens=answer.tokens)
        return answer

    async def write(self, model: str, work: Write, row: Row, *, whole: bool) -> AsyncIterator[Answer]:
        """A text, piece by piece: each answer's only result is a Piece. Closing the iterator ends its generation.

        Args:
            whole: gives all of it as one piece.

        Raises:
            ApiError: as `ask`; after the first piece too.
        """
        for attempt in range(_ATTEMPTS):
            began = False
            try:
                async for answer in self._pieces(model, work, row, whole=whole):
                    self._check(model, answer, ["messages"])
                    began = True
                    yield answer
                return
            except BackPressureError:
                self._check(model, Answer(failed="overloaded", retry_after_s=1.0), ["messages"])
            except TimeoutError:
                self._check(model, Answer(failed="expired"), ["messages"])
            except (RayError, DeploymentUnavailableError) as error:
                if began or attempt + 1 == _ATTEMPTS:  # what was said can't be unsaid
                    raise _unavailable(model) from error

    async def _pieces(self, model: str, work: Write, row: Row, *, whole: bool) -> AsyncIterator[Answer]:
        timeout_s = self.settings.timeout_s
        deadline = time.monotonic() + timeout_s + _SLACK_S
        pieces = self.handles[model].options(stream=True).write.remote(work, row, timeout_s, whole=whole)
        try:
            while True:
                yield await asyncio.wait_for(anext(pieces), deadline - time.monotonic())
        except StopAsyncIteration:
            return
        finally:
            pieces.cancel()

    def _check(self, model: str, answer: Answer, params: Sequence[str]) -> None:
        """Count an answer.

        Raises:
            ApiError: it is none.
        """
        if answer.version and model in self._facts and self._facts[model].version != answer.version:
            del self._facts[model]  # another version has taken over
        if answer.replica:
            self.metrics.load(model=model, replica=answer.replica, values=answer.load)
        if answer.failed:
            error = _failed(answer, self.settings.timeout_s)
            self.metrics.refused(model=model, code=error.code)
            raise error
        for param, result in zip(params, answer.results, strict=False):  # a failed one has none
            if isinstance(result, MediaError):
                raise ApiError(400, str(result), code="invalid_input", param=param)

    async def _attempt(self, model: str, work: Hashable, rows: Sequence[Row]) -> Answer:
        timeout_s = self.settings.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                for attempt in range(_ATTEMPTS):
                    try:
                        return await self.handles[model].ask.remote(work, rows, timeout_s)  # type: ignore[no-any-return]
                    except RayError:
                        if attempt + 1 == _ATTEMPTS:
                            raise
        except BackPressureError:
            return Answer(failed="overloaded", retry_after_s=1.0)
        except TimeoutError:
            return Answer(failed="expired")
        except (RayError, DeploymentUnavailableError) as error:
            raise _unavailable(model) from error
        raise AssertionError("unreachable")

    async def check(self) -> None:
        """Ask every model for something small.

        Raises:
            ApiError: one does not answer.
        """

        async def ask(model: str) -> None:
            row: Row = _CANARY if "text" in (await self.facts(model, fresh=True)).widths else {}
            answer = await self._attempt(model, Embed(), [row])
            if answer.failed not in ("", "overloaded"):
                raise _unavailable(model)

        await asyncio.gather(*map(ask, self.handles))


def _failed(answer: Answer, timeout_s: float) -> ApiError:
    if answer.failed == "overloaded":
        wrong = "the model is busy; try again later"
        return ApiError(429, wrong, code="overloaded", retry_after_s=answer.retry_after_s)
    if answer.failed == "expired":
        return ApiError(504, f"the answer took longer than {timeout_s:g} s", code="timeout")
    return ApiError(500, "the model failed", code="model_failed")


def _unavailable(model: str) -> ApiError:
    return ApiError(503, f"the model {model} does not answer", code="model_unavailable", retry_after_s=5.0)
