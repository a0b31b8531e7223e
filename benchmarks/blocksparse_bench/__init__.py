"""The benchmark of the block-sparse runtime on a CPU, beside baselines and the limits of the machine.

Its command is `python src/bench.py`. May import everything in blocksparse_rnn.
"""
