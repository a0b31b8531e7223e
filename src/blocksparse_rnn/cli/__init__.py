"""The commands, one in each file; `main` picks one by name, `program` has the exit codes that they share.

May import every package.
"""
