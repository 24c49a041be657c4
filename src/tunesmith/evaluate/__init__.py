"""Metrics, probes, and what they say about a network."""
