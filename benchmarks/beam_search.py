"""Error rates of a run with greedy decoding and with beam search, with and without a language model.

The language model is a bigram of the run's training texts; alpha and beta are chosen on dev, error rates are of test.

python src/train.py experiment=demo
python benchmarks/beam_search.py outputs/demo/RUN [--json results.json]
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch

from blocksparse_rnn.config.schema import read_settings
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.speech.beam import BeamDecoder
from blocksparse_rnn.speech.greedy import GreedyDecoder
from blocksparse_rnn.speech.metrics import ErrorCounts
from blocksparse_rnn.training.recogniser import build_recogniser

DISCOUNT = 0.5


def write_arpa(texts: Iterable[str], path: Path) -> None:
    """A bigram model with absolute discounting in ARPA format; KenLM's `lmplz` makes better ones."""
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        pairs.update(itertools.pairwise(["<s>", *text.split(), "</s>"]))
    follows = Counter(second for _, second in pairs.elements())
    starts = Counter(first for first, _ in pairs.elements())
    kinds = Counter(first for first, _ in pairs)
    total = sum(follows.values()) + 1  # one for unseen words
    unigram = {word: count / total for word, count in follows.items()} | {"<unk>": 1 / total}
    seen: dict[str, float] = defaultdict(float)
    for first, second in pairs:
        seen[first] += unigram[second]

    def backoff(word: str) -> float:
        if not starts[word]:
            return 1.0
        return DISCOUNT * kinds[word] / starts[word] / max(1e-9, 1 - seen[word])

    lines = ["\\data\\", f"ngram 1={len(unigram) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    lines += [f"-99\t<s>\t{math.log10(backoff('<s>')):.6f}"]
    lines += [
        f"{math.log10(p):.6f}\t{word}\t{math.log10(backoff(word)):.6f}" for word, p in sorted(unigram.items())
    ]
    lines += ["", "\\2-grams:"]
    lines += [
        f"{math.log10((count - DISCOUNT) / starts[first]):.6f}\t{first} {second}"
        for (first, second), count in sorted(pairs.items())
    ]
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")


def decode(logits: list, decoder) -> tuple[ErrorCounts, float]:
    """Error counts over a split, and the seconds that decoding took."""
    counts, started = ErrorCounts(), time.perf_counter()
    for logits_BTV, frames, texts, alphabet in logits:
        for reference, hypothesis in zip(texts, decoder(logits_BTV, frames, alphabet), strict=True):
            counts.add(reference, hypothesis)
    return counts, time.perf_counter() - started


@torch.inference_mode()
def logits_of(run: Path, split: str) -> list:
    """Logits of a split of the corpus that a run was trained on."""
    settings = read_settings(RunFolder.existing(run))
    recogniser = build_recogniser(settings).eval()
    recogniser.load_state_dict(load_weights(RunFolder.existing(run).best))
    data = SpeechData(
        {split: [u for u in settings.data.build().prepare()[split] if u.problem is None]},
        recogniser.alphabet,
        sample_rate=recogniser.features.sample_rate,
        batch=32,
        seed=0,
        workers=0,
    )
    loader = data.val_dataloader() if split == "dev" else data.test_dataloader()
    return [(*recogniser(b.wave_BS, b.samples), b.texts, recogniser.alphabet) for b in loader]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    settings = read_settings(RunFolder.existing(arguments.run))
    dev, test = logits_of(arguments.run, "dev"), logits_of(arguments.run, "test")
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "words.arpa"
        write_arpa((u.text for u in settings.data.build().prepare()["train"] if u.problem is None), arpa)

        def beam(alpha: float, beta: float) -> BeamDecoder:
            return BeamDecoder(lm=str(arpa), lexicon=None, alpha=alpha, beta=beta, beam=50, threshold=50.0)

        grid = list(itertools.product((0.25, 0.5, 1.0, 2.0), (0.0, 1.0, 2.0)))
        alpha, beta = min(grid, key=lambda point: decode(dev, beam(*point))[0].cer)
        plain = BeamDecoder(lm=None, lexicon=None, alpha=0.0, beta=0.0, beam=50, threshold=50.0)
        decoders = {
            "greedy": GreedyDecoder(),
            "beam, no language model": plain,
            f"beam, bigram, alpha {alpha:g}, beta {beta:g}": beam(alpha, beta),
        }
        rows = []
        for name, decoder in decoders.items():
            decode(test[:1], decoder)  # loads the language model
            counts, seconds = decode(test, decoder)
            per_utterance = 1000 * seconds / sum(len(texts) for _, _, texts, _ in test)
            rows.append(
                {"decoder": name, "cer": counts.cer, "wer": counts.wer, "ms_per_utterance": per_utterance}
            )
            print(
                f"{name:40} CER {counts.cer:.4f}  WER {counts.wer:.4f}  {per_utterance:.1f} ms an utterance"
            )
    if arguments.json:
        about = {"run": arguments.run.name, "seed": settings.seed, "machine": cpu_name(), "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
