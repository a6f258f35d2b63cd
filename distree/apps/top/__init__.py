"""`distree top`: a site as its boards report it, live in the terminal.

`live` hears the broker and sums up, `screen` draws with rich, `cli` joins them.
"""
