"""The orchestrator: hears the fleet, keeps its history and publishes plans. Agents run without it.

`fleet` and `planner` decide and do no I/O; `store` keeps; `service` joins them to a broker; `status` and
`thresholds` serve people from the store alone.
"""
