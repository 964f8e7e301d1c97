"""Marks that decorators leave on a route, for the OpenAPI document and the structural tests."""

from collections.abc import Callable
from typing import Any, TypeVar

View = TypeVar("View", bound=Callable[..., Any])


def mark(view: View, **marks: Any) -> View:
    """Add marks to a route; flask-smorest keeps its own in the same place.

    A new dict each time: the one that `functools.wraps` brought along belongs to the wrapped function.
    """
    view.__dict__["_apidoc"] = {**view.__dict__.get("_apidoc", {}), **marks}
    return view
