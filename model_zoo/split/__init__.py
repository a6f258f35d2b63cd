"""`distree zoo split`: cuts a trained .tflite classifier into stages with early exits, without training tools.

The file is read (`schema`, `graph`) and checked (`refusals`). Its legal cuts are found (`cuts`), written as segments
(`cutting`) and compared with the whole network (`proof`). Exit heads learn from the whole network's own answers
(`features`, `heads`, `quantised`); thresholds are chosen from answers on inputs that the heads have not seen
(`thresholds`). `job` runs these steps in order, in a child process that `supervision` watches: interpreters abort on
damaged files.
"""
