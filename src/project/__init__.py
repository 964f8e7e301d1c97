"""The backend that a web or mobile application needs, behind one REST API."""

from project.app import create_app

__all__ = ["create_app"]
