"""Fixtures of the identity application for every test module of this directory."""

from tests.deployments.identity_house import browser, house, trust

__all__ = ["browser", "house", "trust"]
