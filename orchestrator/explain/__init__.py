"""Why the thresholds in force are what they are: `distree orchestrator explain`.

`view` reads it from the store as data, also as JSON; `text` writes it for people.
"""
