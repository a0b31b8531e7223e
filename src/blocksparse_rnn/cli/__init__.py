"""The commands, one to a file, and in `program` the exit codes that they share.

May import everything.
"""
