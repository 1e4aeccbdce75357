"""`--set key=value` -> a settings model, all errors at once."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mmbm_core.errors import UsageError

Settings = TypeVar("Settings", bound=BaseModel)


def parse_settings(model: type[Settings], pairs: list[str]) -> Settings:
    """Read `key=value` pairs.

    Raises:
        UsageError: every pair that is wrong, with what is allowed.
    """
    malformed = [pair for pair in pairs if "=" not in pair]
    values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    unknown = sorted(set(values) - set(model.model_fields))
    problems = [f"--set {pair}: write key=value" for pair in malformed]
    problems += [f"--set {key}: unknown; allowed: {', '.join(model.model_fields)}" for key in unknown]
    try:
        parsed = model.model_validate({k: v for k, v in values.items() if k not in unknown})
    except ValidationError as error:
        problems += [f"--set {line}" for line in describe(error)]
    if problems:
        raise UsageError("\n".join(problems))
    return parsed


def usage_error(error: ValidationError) -> UsageError:
    """All problems of a request in one message."""
    return UsageError("\n".join(describe(error)))


def describe(error: ValidationError) -> list[str]:
    """One line a problem: where, what was given, what is wrong."""
    return [
        f"{'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in error.errors()
    ]
