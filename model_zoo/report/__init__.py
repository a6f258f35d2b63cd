"""A report on a wide recipe: what early exits save, at what price, chosen on validation and measured on test images.

`networks` finds or makes the bundles, `analysis` turns what they give into the figures of `results`, and `text` and
`plots` show those and nothing else. Only `networks` imports torch, and only where a network has to be exported.
"""
