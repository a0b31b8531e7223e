"""Check a finished run: compare its result.json with its checkpoint, its settings and this installation.

python src/verify.py outputs/rnn-176-dense-s0-1a2b3c
python src/verify.py outputs/rnn-176-bp-b4-s0-4d5e6f --no-test    # without the corpus
python src/verify.py outputs/*/                                   # all of them; unfinished runs are reported
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytorch_lightning as pl
import torch

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.inference.export import load_run
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity, run_name
from blocksparse_rnn.training.corpus import load_data
from blocksparse_rnn.training.result import sizes
from blocksparse_rnn.training.trainer import quieten_lightning

_RATE_TOLERANCE = 2e-3
"""Error rates may differ by this much: another machine or number of threads rounds differently."""


def verify(path: str | Path, test: bool = True) -> Iterator[tuple[str, bool, str]]:
    """Check a run.

    Args:
        path: the run's folder.
        test: whether to compute the test error rate again, which needs the corpus.

    Yields:
        Name of the check, whether it holds, and the values compared, as text.

    Raises:
        UserError: no finished run, or its checkpoint can't be read.
    """
    run = RunFolder.existing(path)
    result = run.result()
    if result is None:
        raise UserError(f"{path}: is not finished (it has no result.json); rerun its command to resume it")
    settings, recogniser = load_run(path)
    yield _equal("settings", identity(settings.plain()), result.get("identity"))
    yield _equal("name", run.path.name, run_name(settings.plain()))
    weights = recogniser.state_dict().values()
    yield "weights", all(bool(torch.isfinite(w).all()) for w in weights), "are finite"
    counted = sizes(recogniser.model, settings.prunable)
    for name, count in counted["parameters"].items():
        yield _equal(f"parameters, {name}", count, result["parameters"][name])
    for name in ("total", "prunable"):
        key = f"sparsity/{name}"
        yield _near(f"sparsity, {name}", counted[key], result[key], 1e-9)
    for package, then in result["versions"].items():
        yield _equal(f"version of {package}", _version(package), then)
    if test:
        rates = _test(settings, recogniser)
        for name in ("cer", "wer"):
            yield _near(f"test {name.upper()}", rates[f"test/{name}"], result[name], _RATE_TOLERANCE)


def _test(settings: Settings, recogniser: pl.LightningModule) -> dict[str, float]:
    """Error rates of the test split; writes nothing into the run."""
    quieten_lightning()
    with tempfile.TemporaryDirectory() as folder:
        data = load_data(settings, recogniser, RunFolder(folder))  # type: ignore[arg-type]
        trainer = pl.Trainer(
            default_root_dir=folder,
            accelerator=settings.trainer.accelerator,
            devices=1,
            precision="32-true",
            logger=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=os.isatty(2),
            enable_model_summary=False,
        )
        return dict(trainer.test(recogniser, datamodule=data, verbose=False)[0])


def _equal(what: str, found: object, stored: object) -> tuple[str, bool, str]:
    same = found == stored
    return what, same, f"{found}" if same else f"{found}, but result.json has {stored}"


def _near(what: str, found: float, stored: float, tolerance: float) -> tuple[str, bool, str]:
    near = abs(found - stored) <= tolerance
    return what, near, f"{found:.6g}" if near else f"{found:.6g}, but result.json has {stored:.6g}"


def _version(package: str) -> str | None:
    if package == "python":
        import platform

        return platform.python_version()
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Read the arguments, print a line for each check; exit with 1 where one fails, 2 where nothing can be checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders under outputs/")
    parser.add_argument("--no-test", action="store_true", help="skip the test error rates")
    arguments = parser.parse_args()
    differing = unchecked = 0
    for run in arguments.runs:
        print(run, flush=True)
        try:
            for what, holds, words in verify(run, test=not arguments.no_test):
                print(f"  {'ok      ' if holds else 'DIFFERS '} {what}: {words}", flush=True)
                differing += not holds
        except UserError as error:
            for line in str(error).splitlines():
                print(f"  error: {line}", file=sys.stderr, flush=True)
            unchecked += 1
    if differing:
        print(f"{differing} differ")
    if unchecked == len(arguments.runs):
        sys.exit(UserError.exit_code)
    if unchecked:
        print(f"{unchecked} of {len(arguments.runs)} runs could not be checked")
    if differing or unchecked:
        sys.exit(PartlyFailed.exit_code)
