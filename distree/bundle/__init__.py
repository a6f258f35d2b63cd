"""A bundle: one model as shipped, and what a board does with it.

`manifest` declares bundle.yaml, `checks` and `input_checks` say whether its parts fit each other, `loading` finds,
verifies and reads bundles. `inputs` read what a source hands over, `windows` cut recordings, `frontends` make features
of windows, `preprocessing` makes tensors of all that, `runtimes` run the segments.
"""
