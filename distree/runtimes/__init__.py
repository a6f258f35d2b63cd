"""Runtimes that execute segments; shared, so that boards, the zoo's evaluation and benchmarks run the same code."""
