"""Odd files, handed over in every way: does each have one answer, or one refusal?

`python -m benchmarks.odd_files` prints the table for docs/results/odd-files.md.
"""
