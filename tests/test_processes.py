"""Child processes: none outlives its parent, and each says why it failed."""

import os
import subprocess
import sys

import pytest
from processes import alive, wait_for

from blocksparse_rnn.cli import job
from blocksparse_rnn.processes import Child, job_environment

CHILD = (
    "import time; from blocksparse_rnn.processes import end_with_parent; end_with_parent(); time.sleep({})"
)
PARENT = """
import sys, time
from blocksparse_rnn.processes import Child, job_environment
print(Child([sys.executable, "-c", sys.argv[1]], job_environment(), None).pid, flush=True)
time.sleep(100)
"""


def test_a_child_ends_when_its_parent_is_killed():
    command = [sys.executable, "-c", PARENT, CHILD.format(100)]
    parent = subprocess.Popen(command, env=job_environment(), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.communicate()
    wait_for(lambda: not alive(child), 30)


def test_what_is_started_by_hand_needs_no_standard_input():
    command = [sys.executable, "-c", CHILD.format(0.3)]
    assert subprocess.run(command, env=job_environment(), stdin=subprocess.DEVNULL).returncode == 0


def test_a_job_watches_its_parent_before_it_trains(tmp_path, monkeypatch):
    called: list[str] = []
    (tmp_path / "config.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["job", str(tmp_path)])
    for name in ("end_with_parent", "read_settings", "check", "train"):
        monkeypatch.setattr(job, name, lambda *_, name=name: called.append(name))
    job.main()
    assert called == ["end_with_parent", "read_settings", "check", "train"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('epoch 1'); exit(3)", "exit code 3: epoch 1"),
        ("print('error: no data'); print('bye'); exit(2)", "exit code 2: no data"),
        ("print('[rank1]: ValueError: odd'); exit(1)", "exit code 1: ValueError: odd"),
        ("import os; print('epoch 2'); os.kill(os.getpid(), 9)", "killed by SIGKILL (out of memory?)"),
        ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM"),
        ("exit(4)", "exit code 4"),
        ("import os, sys; os.remove(sys.argv[1]); exit(5)", "exit code 5"),
    ],
)
def test_a_child_says_why_it_failed(tmp_path, program, reason):
    log = tmp_path / "stdout.log"
    log.write_text("error: of an earlier attempt\n")
    child = Child([sys.executable, "-c", program, str(log)], os.environ, log)
    child.close()
    assert child.failure_reason() == reason
