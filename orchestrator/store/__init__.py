"""The orchestrator's memory: an SQLite file, what is read from it and written to it, and which service may write."""
