"""Processes that synthesise a corpus, and its utterances in order."""

import contextlib
import itertools
import os
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from blocksparse_rnn.data.synth.speaker import Recipe, Speaker, Spoken
from blocksparse_rnn.errors import UserError

_CHUNK = 8  # utterances a worker makes at a time


class SpeakerWorkers:
    """Processes that run `serve`, each used by one thread at a time.

    Programs on pipes rather than `multiprocessing`, which would import the main script, and torch with
    it, in each of them. They read until their standard input closes, so they end with this process,
    even if it is killed.
    """

    _program = "import sys; sys.path[:] = sys.argv[1:]; from blocksparse_rnn.data.synth.workers import serve; serve()"

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.recipe = recipe
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        # Otherwise numerical libraries would start a thread per core in each of them.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            for _ in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", self._program, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    process_group=0,  # Ctrl-C reaches this process alone, which ends them
                )
                self.processes.append(process)
                self.idle.put(process)
        except OSError as error:
            self.close()
            raise UserError(
                f"data.workers={count}: cannot start as many processes ({error.strerror}); lower data.workers"
            ) from error

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def speak(self, split: str, start: int) -> list[Spoken]:
        """Let the next idle process make a chunk of utterances."""
        process = self.idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((self.recipe, split, start), process.stdin)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise UserError(
                "a process that synthesises the corpus died, perhaps for lack of memory; "
                f"start again with fewer than data.workers={self.count}"
            ) from None
        finally:
            self.idle.put(process)
        if isinstance(reply, UserError):
            raise reply
        return reply


def serve() -> None:
    """Main loop of a worker process: make the chunks requested on standard input, until it closes."""
    speaker: Speaker | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            recipe, split, start = pickle.load(sys.stdin.buffer)
            reply: list[Spoken] | UserError
            try:
                speaker = speaker or Speaker(recipe)
                reply = [speaker.utterance(split, index) for index in range(start, start + _CHUNK)]
            except UserError as error:
                reply = error
            pickle.dump(reply, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def in_order(
    workers: SpeakerWorkers, threads: ThreadPoolExecutor, split: str
) -> Generator[Spoken, None, None]:
    """Utterances 0, 1, 2, ... without end, with a bounded number of chunks prefetched."""
    ahead: deque[Future[list[Spoken]]] = deque()
    try:
        for start in itertools.count(0, _CHUNK):
            ahead.append(threads.submit(workers.speak, split, start))
            if len(ahead) == 2 * workers.count:
                yield from ahead.popleft().result()
    finally:
        for chunk in ahead:
            chunk.cancel()
