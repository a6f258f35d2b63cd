"""`distree doctor`: checks everything that a board's agent needs.

One file per group of checks. A check is a function that takes a `CheckContext` and returns a `Finding`; its file lists
it in `CHECKS`, with its name and the checks that it needs. To add a check to a group, add it to that tuple. To add a
group, write a file with such a tuple, and name the file in `cli.GROUPS`, after the groups that it depends on. The table
in docs/howto/diagnose.md has a row for each check.
"""
