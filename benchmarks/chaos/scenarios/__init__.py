"""Scenarios with checks of their own, one file each: `run(report, options)` plays it, or `run(report, case, options)`."""
