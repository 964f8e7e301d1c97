"""Accounts, files and payments behind one REST API."""

from project.app import create_app

__all__ = ["create_app"]
