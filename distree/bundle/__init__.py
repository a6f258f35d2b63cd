"""A bundle: one model as shipped, and what a board does with it.

`manifest` declares bundle.yaml, `checks` says whether its parts fit each other, `loading` finds, verifies and reads
bundles, `preprocessing` makes tensors of inputs, `runtimes` run the segments.
"""
