"""Fixtures of the identity application, and of the tiers, for every test module of this directory."""

from tests.deployments.identity_house import browser, house, trust
from tests.deployments.score_house import scores
from tests.deployments.vault_house import vault_house

__all__ = ["browser", "house", "scores", "trust", "vault_house"]
