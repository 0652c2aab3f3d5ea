"""The errors that reach a user. Each message is a sentence: what, which value, what to do."""


class OckhamError(Exception):
    """Base of every error that Ockham raises on purpose. `status` is the HTTP status code."""

    status = 500


class InvalidRequest(OckhamError, ValueError):
    """A request that can never be served as it stands. `param` names the field at fault, `code` the
    kind of fault where programs tell it from others."""

    status = 400

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


TOO_LONG = "context_length_exceeded"
"""OpenAI's `code` of a prompt that is too long: agents shorten their history when they read it."""


class Overloaded(OckhamError):
    """The queue is full. The same request may succeed later."""

    status = 429


class RequestTimeout(OckhamError):
    """A request did not finish within the time that it was given."""

    status = 408


class EngineDead(OckhamError):
    """The engine process ended while it held the request; a new one is being started."""

    status = 503


class WorkerError(OckhamError):
    """Work that was handed to a worker process came to nothing. Others are not concerned."""


class TaskFailed(WorkerError):
    """The work raised an error that nobody raises on purpose. `kind` is its class's name."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class LimitExceeded(WorkerError):
    """The work needed more than its worker process may use. `limit` says of what: "CPU time",
    "wall time", "memory" or "output"."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class WorkerDied(WorkerError):
    """The worker process ended in the middle of the work, by a signal or by itself."""


class WorkerUnavailable(WorkerError):
    """No worker process can be started now. The same work may succeed later."""

    status = 503


class ModelError(OckhamError, ValueError):
    """A checkpoint, configuration or tokenizer that cannot be loaded."""


class DoesNotFit(ModelError, MemoryError):
    """The model, or its state, needs more memory than is allowed."""


class ConfigError(OckhamError, ValueError):
    """A setting, or a combination of settings, that Ockham does not support."""


FAULT = "the engine met a fault of its own over this request; its log says more"
"""`stop_reason` of a choice that ended in an "error" which nothing in its request asked for."""


def fault() -> OckhamError:
    """What a caller is told of a fault that it did not cause."""
    return OckhamError(f"{FAULT[0].upper()}{FAULT[1:]}.")
