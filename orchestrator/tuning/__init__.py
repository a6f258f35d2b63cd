"""From audits to thresholds: which audits are accepted, what tuners learn from them, and which thresholds hold.

`pipeline_tuning` is the entrance; `live_tuner` is the contract that every tuner in `tuners` fulfils. Nothing here knows
the rest of the orchestrator.
"""
