"""Inputs from files that appear in a folder.

`source.py` is the source itself, in a thread of its own. What it decides with has no threads: `watch.py` says which
files are finished, `identity.py` what a file is, `journal.py` which files are done with though they are still there,
`put_away.py` takes those away, and `retention.py` limits how many are kept.
"""

from __future__ import annotations

from device_agent.sources.directory.source import DirectorySource, DirectorySourceConfig

__all__ = ["DirectorySource", "DirectorySourceConfig"]
