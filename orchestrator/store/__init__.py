"""The orchestrator's memory: a SQLite file, what is read from it and written to it, and who may write."""
