"""The orchestrator: follows a site's boards, keeps their history and publishes plans. Agents run without it.

`service` takes turns: messages from the broker go to `site_view` and to one `pipeline_controller` per pipeline, which
decide and do no I/O; plans go back to the broker, and everything goes to the `store`. `status` and `explain` read the
store, whether or not a service is running. `tuning` turns audits into thresholds, `simulator` runs it all without a
site.
"""
