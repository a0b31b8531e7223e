"""Deep-Speech-2-style recognisers. They never hear of sparsity."""
