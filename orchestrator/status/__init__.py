"""What is known of a site: `distree orchestrator status`.

`view` reads it from the store as data, also as JSON; `text` writes it for people.
"""
