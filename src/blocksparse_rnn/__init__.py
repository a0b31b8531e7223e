"""Recurrent speech recognisers that are pruned in blocks while they train.

from blocksparse_rnn import BlockSparse, Transcriber
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocksparse_rnn.inference.transcriber import Transcriber
    from blocksparse_rnn.runtime.bsr import BlockSparse

__all__ = ["BlockSparse", "Transcriber", "__version__"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Imports what others use when they ask for it: `import blocksparse_rnn` alone doesn't load torch."""
    homes = {"BlockSparse": "runtime.bsr", "Transcriber": "inference.transcriber"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
