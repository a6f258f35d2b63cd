"""Benchmarks: they print and write figures and assert nothing about time."""
