"""The two kinds of trouble a user sees: usage errors (exit status 2) and failed runs (exit status 1)."""


class UsageError(ValueError):
    """The request can't be carried out as written. Says what was given, what is allowed and what to do."""


class RunError(RuntimeError):
    """A well-formed run failed: no disk, no permission, a lost cluster. Says what to do next."""


class MediaError(ValueError):
    """One value can't be used. The message never contains the value itself."""
