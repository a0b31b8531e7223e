"""How fast the block-sparse runtime is, beside what else there is, and beside what the machine allows."""
