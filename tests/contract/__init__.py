"""Suites that every implementation of a contract runs. Their asserts explain themselves like those of test modules."""

import pytest

pytest.register_assert_rewrite("tests.contract.http_suite")
