"""Recurrent speech recognisers that are pruned in blocks while they train.

from blocksparse_rnn import BlockSparse, Transcriber

A package may import those to its left, never one of its own group:
speech, models, pruning < data, runtime < runs < config < training < sweep, inference, report < cli.
Every package may import the modules beside this file; they import one another only.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocksparse_rnn.inference.transcriber import Transcriber
    from blocksparse_rnn.runtime.bsr import BlockSparse

__all__ = ["BlockSparse", "Transcriber", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import a public class at its first use, so that `import blocksparse_rnn` alone doesn't load torch."""
    homes = {"BlockSparse": "runtime.bsr", "Transcriber": "inference.transcriber"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
