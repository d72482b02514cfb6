"""Fixtures of the identity and score applications for every test module of this directory."""

from tests.deployments.identity_house import browser, house, trust
from tests.deployments.score_house import scores

__all__ = ["browser", "house", "scores", "trust"]
