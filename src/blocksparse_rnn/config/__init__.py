"""Settings: composed from conf/ and the command line (`compose`, `grids`), typed (`schema`, `nodes`), checked
(`checks`), and built into objects (`build`).

May import runs and the packages below it.
"""
