"""Injects faults into trainings and sweeps, reruns the command, and compares the results with undisturbed ones.

make faults                                        # 50 kills over a sweep of 6 runs, and all other faults
python tests/faults.py --short                     # a few minutes: what no other test injects
python tests/faults.py --only kills --kills 20     # faults of one kind
python tests/faults.py --out results/faults.json   # also write the table to a file

A fault counts as recovered when the rerun ends with the same bits as an undisturbed run, and as lost otherwise.
The faults are random; --seed repeats their choice, not their moments, which depend on the machine.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from conftest import write_tones
from processes import alive, children

from blocksparse_rnn.cli import program
from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.provenance import cpu_name

TRAIN = str(CONF.parent / "src" / "train.py")
CLOCK = ("wall_seconds", "cpu_seconds", "saving_seconds", "audio_hours_per_second", "resumed", "finished")
"""Of a result, what depends on when it was made."""
PATIENCE = 600.0


@dataclass
class Outcome:
    """How often one kind of fault was injected, recovered and lost."""

    fault: str
    injected: int = 0
    recovered: int = 0
    lost: int = 0
    note: str = ""
    seconds: float = 0.0


class Bench:
    """A folder with a corpus of tones, and the commands of trainings on it.

    Args:
        folder: everything happens in here.
        epochs: passes over the corpus, five steps each.
        rng: source of the choices.
    """

    def __init__(self, folder: Path, epochs: int, rng: random.Random) -> None:
        self.folder, self.epochs, self.rng = folder, epochs, rng
        (folder / "tones").mkdir()
        sizes = {"train": 40, "dev": 6, "test": 6}
        self.tones = {s: write_tones(folder / "tones", s, n, k) for k, (s, n) in enumerate(sizes.items())}
        self.environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONF.parent / "src")}
        self._undisturbed: dict[tuple[str, ...], Path] = {}

    def command(self, outputs: Path, *options: str, data: bool = True) -> list[str]:
        base = [
            "scale=mini",
            "model=gru",
            "width=16",
            "batch=8",
            "trainer.accelerator=cpu",
            "schedule.freq=2",
        ]
        base += [
            "features.specaugment={n_time_masks: 1, time_mask_param: 5, n_freq_masks: 1, freq_mask_param: 9}"
        ]
        base += ["sweep=faults"]  # else a sweep is named after its command, and so after its outputs
        if data:
            base += ["data=manifest", *(f"data.{split}={path}" for split, path in self.tones.items())]
        if not any(option.startswith("logger=") for option in options):
            base += ["logger=csv"]
        if not any(option.startswith("trainer.max_epochs=") for option in options):
            base += [f"trainer.max_epochs={self.epochs}"]
        sweep = [option for option in options if option == "-m"]
        settings = [option for option in options if option != "-m"]
        return [sys.executable, TRAIN, *sweep, *base, f"outputs={outputs}", *settings]

    def start(self, command: list[str], **more: str) -> subprocess.Popen:
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipes["stdout"] = log
        process = subprocess.Popen(command, env=self.environment | more, text=True, **pipes)
        process.log = log  # type: ignore[attr-defined]
        return process

    def undisturbed(self, *options: str) -> Path:
        """Outputs of a command without faults."""
        if options not in self._undisturbed:
            outputs = self.folder / f"undisturbed-{len(self._undisturbed)}"
            finish(self.start(self.command(outputs, *options)))
            self._undisturbed[options] = outputs
        return self._undisturbed[options]

    def fresh(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


def output(process: Any) -> str:
    process.log.seek(0)
    return process.log.read()


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Wait for the end of a program, and check its exit code; returns its output."""
    process.wait(PATIENCE)
    text = output(process)
    if process.returncode != code:
        raise AssertionError(f"exit code {process.returncode} where {code} was expected:\n{text[-3000:]}")
    return text


def wait_for(condition: Callable[[], Any], process: subprocess.Popen) -> Any:
    """Wait until a condition holds, and fail if the program ends before."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end or process.poll() is not None:
            raise AssertionError(
                f"waited in vain; exit code {process.returncode}:\n{output(process)[-3000:]}"
            )
        time.sleep(0.02)
    return found


def differences(mine: Path, other: Path) -> list[str]:
    """Differences in bits between the runs of two folders."""
    names = sorted(path.parent.name for path in other.glob("*/result.json"))
    found = []
    for name in names:
        one, two = RunFolder(mine / name), RunFolder(other / name)
        result, expected = one.result(), two.result()
        assert expected is not None
        if result is None:
            found.append(f"{name}: no result")
            continue
        weights = load_weights(one.best)
        if any(not torch.equal(weights[key], value) for key, value in load_weights(two.best).items()):
            found.append(f"{name}: weights")
        if rows(one) != rows(two):
            found.append(f"{name}: metrics.csv")
        if _timeless(result) != _timeless(expected):
            found.append(f"{name}: result.json")
    return found


def rows(run: RunFolder) -> list[tuple[str, ...]]:
    with open(run.metrics, newline="") as file:
        return [tuple(row[:4]) for row in csv.reader(file)]


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in result.items() if name not in CLOCK}
    if kept.get("q_source"):
        kept["q_source"] = Path(kept["q_source"]).name  # of the dense run, which lies in another folder
    return kept


def tree(pid: int) -> list[int]:
    """A process's descendants."""
    return [p for child in children(pid) for p in (child, *tree(child))]


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# The faults. Each injects something, reruns the command if needed, and compares.


def kills(bench: Bench, count: int, runs: tuple[str, ...], every: float | None) -> Iterator[Outcome]:
    """kill -9 of a job, of the sweep, or of all at once like a power cut, at random moments."""
    options = ("-m", *runs, "launcher.slots=2", "launcher.max_attempts=1000")
    began = time.monotonic()
    undisturbed = bench.undisturbed(*options)
    whole = time.monotonic() - began
    expected = len(list(undisturbed.glob("*/result.json")))
    # Long enough for some jobs to make progress, short enough to hit all.
    mean = every or max(4.0, 0.25 * whole * 2 / expected)
    done, victims, round_ = 0, {"job": 0, "sweep": 0, "everything": 0}, 0
    lost: list[str] = []
    repeated = 0
    while done < count:
        outputs = bench.fresh(f"kills-{round_}")
        round_ += 1
        while True:
            # The temporary folder on another file system, where a rename isn't atomic.
            process = bench.start(bench.command(outputs, *options), TMPDIR="/dev/shm")
            ended = False
            while done < count and not ended:
                try:
                    process.wait(bench.rng.uniform(0.1, 2 * mean))
                    ended = True
                except subprocess.TimeoutExpired:
                    victim = bench.rng.choices(["job", "sweep", "everything"], [6, 2, 2])[0]
                    below = tree(process.pid)
                    if victim == "job" and not children(process.pid):
                        continue
                    victims[victim] += 1
                    done += 1
                    if victim == "job":
                        kill(bench.rng.choice(children(process.pid)))
                        continue
                    kill(process.pid)
                    if victim == "everything":
                        for pid in below:
                            kill(pid)
                    process.wait()
                    end = time.monotonic() + 30
                    while any(map(alive, below)):
                        if time.monotonic() > end:
                            lost.append("a job outlived its sweep")
                            break
                        time.sleep(0.05)
                    break
            if ended or done >= count:
                break
        if process.poll() is None:
            process.wait(PATIENCE)
        if process.returncode != 0:
            finish(bench.start(bench.command(outputs, *options)))
        lost += differences(outputs, undisturbed)
        for log in outputs.glob("*/stdout.log"):
            repeated += log.read_text(errors="replace").count(": test CER ") > 1
    note = ", ".join(f"{n} of {'a ' if v == 'job' else ''}{v}" for v, n in victims.items())
    note += f"; {round_} x {expected} runs ended, {len(lost)} with other bits, {repeated} done twice"
    yield Outcome(
        f"kill -9 over a sweep of {expected} runs", done, done - len(lost), len(lost) + repeated, note
    )
    for problem in lost:
        print(f"  lost: {problem}")


def signals(bench: Bench) -> Iterator[Outcome]:
    """SIGTERM, once and twice, and Ctrl-C: a checkpoint, the exit code of the signal, and the same bits after a rerun."""
    undisturbed = bench.undisturbed()
    for name in ("SIGTERM", "SIGTERM twice", "Ctrl-C"):
        sent = [signal.SIGINT if name == "Ctrl-C" else signal.SIGTERM] * (2 if "twice" in name else 1)
        outputs = bench.fresh("signal")
        process = bench.start(bench.command(outputs))
        wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)  # noqa: B023
        time.sleep(bench.rng.uniform(0, 1))
        for number in sent:
            process.send_signal(number)
            time.sleep(0.01)
        finish(process, 128 + sent[0])
        finish(bench.start(bench.command(outputs)))
        yield compared(name, outputs, undisturbed, "")


def compared(fault: str, outputs: Path, undisturbed: Path, note: str) -> Outcome:
    found = differences(outputs, undisturbed)
    return Outcome(fault, 1, int(not found), int(bool(found)), "; ".join(filter(None, [note, *found])))


def damaged(bench: Bench) -> Iterator[Outcome]:
    """Flipped bits in the last checkpoint, or its end cut off, after a kill."""
    undisturbed = bench.undisturbed()
    for name in ("last checkpoint with flipped bits", "last checkpoint cut off", "both checkpoints damaged"):
        outputs = bench.fresh("damaged")
        process = bench.start(bench.command(outputs))
        [last] = wait_for(
            lambda: [p.with_name("last.ckpt") for p in outputs.glob("*/checkpoints/previous.ckpt")],  # noqa: B023
            process,
        )
        kill(process.pid)
        process.wait()
        files = [last, last.with_name("previous.ckpt")] if "both" in name else [last]
        for file in files:
            content = bytearray(file.read_bytes()) if file.exists() else bytearray(1000)
            middle = len(content) // 2
            content[middle] ^= 0xFF
            file.write_bytes(content[:middle] if "cut" in name else content)
        text = finish(bench.start(bench.command(outputs)))
        yield compared(name, outputs, undisturbed, "" if "is damaged (" in text else "no message")


def full_disk(bench: Bench) -> Iterator[Outcome]:
    """A file system that fills up while a run saves."""
    undisturbed = bench.undisturbed()
    disk = bench.fresh("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        yield Outcome("full disk", note=f"not injected: {mounted.stderr.strip() or 'no permission to mount'}")
        return
    try:
        outputs = disk / "outputs"
        process = bench.start(bench.command(outputs))
        wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        text = finish(process, 2)
        (disk / "filler").unlink()
        note = "" if "No space left on device" in text and "Traceback" not in text else "no one-line message"
        finish(bench.start(bench.command(outputs)))
        yield compared("full disk", outputs, undisturbed, note)
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def read_only(bench: Bench) -> Iterator[Outcome]:
    """A folder that can't be written any more in mid-training."""
    undisturbed = bench.undisturbed()
    outputs = bench.fresh("read-only")
    process = bench.start(bench.command(outputs))
    [last] = wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)
    # Permissions don't hold root back, a flag of the file system does.
    close, open_ = (
        (["chattr", "+i"], ["chattr", "-i"]) if os.geteuid() == 0 else (["chmod", "555"], ["chmod", "755"])
    )
    closed = subprocess.run([*close, str(last.parent)], capture_output=True, text=True)
    if closed.returncode:
        kill(process.pid)
        process.wait()
        yield Outcome("read-only folder", note=f"not injected: {closed.stderr.strip()}")
        return
    try:
        text = finish(process, 2)
    finally:
        subprocess.run([*open_, str(last.parent)], check=True)
    note = "" if "error: cannot write" in text and "Traceback" not in text else "no one-line message"
    finish(bench.start(bench.command(outputs)))
    yield compared("read-only folder", outputs, undisturbed, note)


def no_network(bench: Bench) -> Iterator[Outcome]:
    """W&B as logger, no key and no network."""
    undisturbed = bench.undisturbed()
    outputs = bench.fresh("network")
    apart = ["unshare", "--net"]
    possible = subprocess.run([*apart, "true"], capture_output=True).returncode == 0
    command = bench.command(outputs, "logger=wandb")
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    without_key = {name: "" for name in os.environ if name.startswith("WANDB_API")}
    process = bench.start(
        [*apart, *command] if possible else command, **nowhere, **without_key, HOME=str(outputs)
    )
    finish(process)
    yield compared(
        "no network", outputs, undisturbed, "" if possible else "closed ports instead of a namespace"
    )


def killed_worker(bench: Bench) -> Iterator[Outcome]:
    """kill -9 of a process that loads audio; the sweep tries the job again."""
    options = ("-m", "seed=1", "launcher.max_attempts=3", "workers=2")
    undisturbed = bench.undisturbed(*options)
    outputs = bench.fresh("worker")
    process = bench.start(bench.command(outputs, *options))
    wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)
    loaders = wait_for(lambda: [p for job in children(process.pid) for p in tree(job)], process)
    kill(bench.rng.choice(loaders))
    finish(process)
    [log] = outputs.glob("*/stdout.log")
    note = "" if "DataLoader worker" in log.read_text() else "the training did not notice"
    yield compared("killed loader worker", outputs, undisturbed, note)


def killed_rank(bench: Bench) -> Iterator[Outcome]:
    """kill -9 of one of two ranks; the job ends in time, and the sweep tries it again."""
    options = (
        "-m",
        "seed=1",
        "sparsifier=glp",
        "target_sparsity=0.5",
        "launcher.max_attempts=3",
        "trainer.devices=2",
    )
    undisturbed = bench.undisturbed(*options)
    outputs = bench.fresh("rank")
    process = bench.start(bench.command(outputs, *options))
    wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)
    ranks = wait_for(lambda: [p for job in children(process.pid) for p in children(job)], process)
    kill(bench.rng.choice(ranks))
    killed = time.monotonic()
    while any(map(alive, ranks)) and time.monotonic() < killed + 60:
        time.sleep(0.05)
    took = time.monotonic() - killed
    finish(process)
    note = f"the other rank had ended after {took:.1f} s"
    outcome = compared("killed rank", outputs, undisturbed, note)
    if took > 30:
        outcome.recovered, outcome.lost = 0, 1
    yield outcome


def killed_corpus(bench: Bench) -> Iterator[Outcome]:
    """kill -9 of everything while synthetic speech is made."""
    options = ("data.hours=0.02", "epochs_per_pass=null", "data.vocabulary=100", "trainer.max_steps=1")

    def command(corpora: Path) -> list[str]:
        return bench.command(bench.fresh("speech"), *options, f"corpora={corpora}", data=False)

    whole, broken = bench.fresh("corpora"), bench.fresh("corpora")
    finish(bench.start(command(whole)))
    process = bench.start(command(broken))
    wait_for(lambda: len(list(broken.rglob("*.flac"))) > 3, process)
    below = tree(process.pid)
    for pid in (process.pid, *below):
        kill(pid)
    process.wait()
    half = not list(broken.glob("[!.]*"))
    finish(bench.start(command(broken)))
    files = {path.relative_to(whole): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    again = {path.relative_to(broken): path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    same = half and files == again
    yield Outcome(
        "kill -9 while a corpus is made", 1, int(same), int(not same), f"{len(files)} files compared"
    )


def resumed_start(bench: Bench) -> Iterator[Outcome]:
    """Seconds from the start of a resumed run to its first new step; no fault is injected."""
    outputs = bench.fresh("start")
    process = bench.start(bench.command(outputs))
    [last] = wait_for(lambda: list(outputs.glob("*/checkpoints/last.ckpt")), process)
    process.terminate()
    finish(process, 143)
    step = torch.load(last, weights_only=True)["global_step"]
    began = time.monotonic()
    process = bench.start(bench.command(outputs, "trainer.log_every=1"))
    run = RunFolder(last.parents[1])
    wait_for(lambda: run.metrics.exists() and any(int(row[0]) >= step for row in rows(run)[1:]), process)
    took = time.monotonic() - began
    finish(process)
    yield Outcome("(start of a resumed run)", note=f"first new step after {took:.1f} s")


def main() -> None:
    """Inject the chosen faults, and exit with 1 if a run was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="6 kills over two runs, and only what no other test injects: a few minutes",
    )
    parser.add_argument("--kills", type=int, help="number of kill -9 over the sweep (50, short: 6)")
    parser.add_argument("--every", type=float, help="mean seconds between two kills (as the machine allows)")
    parser.add_argument("--epochs", type=int, help="epochs of five steps of every run (40, short: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of victims")
    parser.add_argument("--only", nargs="*", help="kinds of faults, by name")
    parser.add_argument("--out", type=Path, help="JSON file for what happened")
    arguments = parser.parse_args()
    count = arguments.kills or (6 if arguments.short else 50)
    epochs = arguments.epochs or (8 if arguments.short else 40)
    runs = ("sparsifier=none,bp",) if arguments.short else ("sparsifier=none,bp,glp", "seed=1,2")
    long_only = ("signals", "damaged", "killed_rank", "killed_corpus", "resumed_start")
    kinds: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
        "kills": lambda bench: kills(bench, count, runs, arguments.every),
        "signals": signals,
        "damaged": damaged,
        "full_disk": full_disk,
        "read_only": read_only,
        "no_network": no_network,
        "killed_worker": killed_worker,
        "killed_rank": killed_rank,
        "killed_corpus": killed_corpus,
        "resumed_start": resumed_start,
    }
    if unknown := set(arguments.only or ()) - kinds.keys():
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    chosen = arguments.only or [kind for kind in kinds if not (arguments.short and kind in long_only)]
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"{'fault':38} {'injected':>8} {'recovered':>9} {'lost':>4}  seconds")
    try:
        bench = Bench(folder, epochs, random.Random(arguments.seed))
        for name in chosen:
            began = time.monotonic()
            try:
                found = list(kinds[name](bench))
            except AssertionError as error:
                found = [Outcome(name, 1, 0, 1, str(error))]
            for outcome in found:
                outcome.seconds = round((time.monotonic() - began) / len(found), 1)
                outcomes.append(outcome)
                print(
                    f"{outcome.fault:38} {outcome.injected:8} {outcome.recovered:9} {outcome.lost:4}  "
                    f"{outcome.seconds:7}  {outcome.note}",
                    flush=True,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    total = [sum(getattr(o, name) for o in outcomes) for name in ("injected", "recovered", "lost")]
    print(f"{'total':38} {total[0]:8} {total[1]:9} {total[2]:4}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "seed": arguments.seed,
            "device": cpu_name(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        }
        table = {**about, "outcomes": [asdict(outcome) for outcome in outcomes]}
        arguments.out.write_text(json.dumps(table, indent=2) + "\n")
    if total[2]:
        sys.exit(1)


if __name__ == "__main__":
    program.run(main)
