"""Fixtures of the applications for every test module of this directory."""

from tests.deployments.identity_house import browser, house, identity_database, prepared, trust
from tests.deployments.score_house import scores
from tests.deployments.trace_house import trace_house
from tests.deployments.vault_house import vault_house

__all__ = ["browser", "house", "identity_database", "prepared", "scores", "trace_house", "trust", "vault_house"]
