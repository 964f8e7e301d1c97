"""How the sandbox refuses a call: as Stripe would, with its codes and in our words."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What goes back to the SDK: an HTTP status and JSON."""

    status: int
    body: str
    replayed: bool = False

    @classmethod
    def of(cls, wire: dict[str, Any], *, status: int = 200) -> "Answer":
        """Make the answer that shows this object."""
        return cls(status, json.dumps(wire))


class WireError(Exception):
    """A refusal; whatever the call has done by then is undone."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(code or kind)
        self.code = code
        told = {"type": kind, "code": code, "message": message, "param": param}
        error = {name: value for name, value in told.items() if value is not None}
        self.answer = Answer.of({"error": error}, status=status)


def missing(kind: str, ref: str, *, param: str) -> WireError:
    """There is no object with this id: 404 for the object asked for, 400 for one that a parameter names."""
    status = 404 if param == "id" else 400
    return WireError(f"No such {kind}: '{ref}'", code="resource_missing", param=param, status=status)


def unexpected_state(done: str, status: str, allowed: set[str]) -> WireError:
    """The object's state does not allow this."""
    only = ", ".join(sorted(allowed))
    message = (
        f"This PaymentIntent could not be {done} because it has a status of {status}. It must have one of: {only}."
    )
    return WireError(message, code="payment_intent_unexpected_state")
