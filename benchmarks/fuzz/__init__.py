"""Damaged messages and files at everything that reads any: `make fuzz`, `python -m benchmarks.fuzz --help`.

Each file in `targets/` names readers of the product, with good messages or files for each. `mutations` damages these,
`run` hands them over and measures, `__main__` prints the table.
"""
