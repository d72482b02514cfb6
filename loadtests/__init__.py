"""Locust users, benchmarks and the peer that the engine is measured against."""
