"""Settings: how they are composed from conf/ and the command line, and what they may be.

May import runs and what lies below it.
"""
