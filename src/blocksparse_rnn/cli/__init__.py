"""The commands, one in each file. `main` picks one by name, `program` has their exit codes, `job` is a sweep's.

May import every package.
"""
