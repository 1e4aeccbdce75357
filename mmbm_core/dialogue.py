"""Dialogues as texts."""

from collections.abc import Sequence


def join_turns(turns: Sequence[str], most: int | None) -> str:
    """The input text of an answer: the last turns before it, the earliest first; `most` None takes all."""
    return "\n".join(turns[-most:] if most else turns)
