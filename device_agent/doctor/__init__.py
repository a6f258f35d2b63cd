"""`distree doctor`: one file per group of checks; `cli.CHECKS` has them in order."""
