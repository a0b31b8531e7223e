"""From logits to text by greedy decoding: the argmax of each frame, repeats and blanks removed.

Shapes: B batch, T frames, V alphabet with blank.
"""

import torch
from torch import Tensor

from blocksparse_rnn.speech.alphabet import Alphabet


class GreedyDecoder:
    """Greedy, or best-path, decoding (Graves et al., 2006, section 3.2)."""

    def __call__(self, logits_BTV: Tensor, lengths: list[int], alphabet: Alphabet) -> list[str]:
        """Decode a padded batch.

        Args:
            logits_BTV: scores, padded at the end.
            lengths: valid frames of each utterance.
            alphabet: letters and blank of the V scores.
        """
        best_BT = logits_BTV.argmax(dim=-1).cpu()
        texts = []
        for best_T, length in zip(best_BT, lengths, strict=True):
            indices = torch.unique_consecutive(best_T[:length]).tolist()
            texts.append(alphabet.decode([i for i in indices if i != alphabet.blank]))
        return texts
