"""Scenarios with checks of their own, one file each: `run(report, options)`, or `run(report, case, options)`."""
