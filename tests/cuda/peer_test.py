"""peer.py with a stand-in for torch: what it measures, and what stays where the compiler fails, hangs or the process is ended.

peer_test.py PEER_PY
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from unittest.mock import MagicMock

EAGER = 2  # of the rows below: what is measured without the compiler
ROWS = [("kd_softmax_loss with gradient", "4 x 10 BF16"), ("kd_softmax_loss with gradient", "8 x 20 BF16")]


def run_with_stand_in(peer, path, compiler):
    """In a process of its own: runs peer.py on a torch that answers every call."""
    torch = MagicMock()
    torch.__version__ = "stand-in"
    torch.cuda.is_available.return_value = True
    torch.cuda.Event.return_value.elapsed_time.return_value = 2.5
    torch.rand.return_value.__gt__ = MagicMock()  # by itself a mock compares with none

    def compile_(function, mode, dynamic):
        if compiler == "fails" or (compiler == "fails at best" and mode != "default"):
            raise RuntimeError("not supported\nhere")
        if compiler.startswith("SIG"):  # and goes on after any Exception
            try:
                os.kill(os.getpid(), getattr(signal, compiler))
                raise SystemExit("the signal has not broken off what ran")
            except Exception:
                pass
        return function

    torch.compile = compile_
    for name in ("torch", "torch.nn", "torch.nn.utils"):
        sys.modules[name] = torch
    sys.argv = [peer, path, "1000"]
    runpy.run_path(peer, run_name="__main__")


def run(peer, compiler, measured=ROWS):
    """The exit code, what was said, and the peers of the file that is left."""
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "rows.json")
        rows = [
            {"name": name, "size": size, "milliseconds": 1.0, "bytes": 8.0, "of_copy": 0.5} for name, size in measured
        ]
        with open(path, "w") as file:
            json.dump({"device": "stand-in", "rows": rows, "left_out": [], "failed": [], "complete": compiler != "works"}, file)
        command = [sys.executable, __file__, peer, path, compiler]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        with open(path) as file:
            return ended, json.load(file).get("peers", [])


def main(peer):
    failed = False

    def check(right, what, ended):
        nonlocal failed
        if not right:
            failed = True
            print(f"FAILED: {what}: code {ended.returncode}\n{ended.stdout}{ended.stderr}")

    def names(peers):
        return [found["peer"] for found in peers]

    ended, peers = run(peer, "works")
    check(ended.returncode == 0 and names(peers) == ["eager", "eager", "compile", "compile"], "all", ended)
    check("compile 0.500 ms = 0.5x (>= 1.2x: MISSED)" in ended.stdout, "the table", ended)
    check("gpu_benchmark was stopped" in ended.stdout, "rows that are missing", ended)
    step = ("fused_sgd, guarded, small", "2 tensors, 2048 weights")
    ended, peers = run(peer, "works", [step, ROWS[0]])
    compiled = [found["name"] for found in peers if found["peer"].startswith("compile")]
    check(compiled == [ROWS[0][0], step[0], step[0]], "steps, which take the compiler minutes, last", ended)
    ended, peers = run(peer, "fails at best")
    check(names(peers)[EAGER:] == ["compile, default mode"] * 2, "the default mode", ended)
    ended, peers = run(peer, "fails")
    check(ended.returncode == 0 and len(peers) == EAGER, "a compiler that fails", ended)
    check("left out: RuntimeError: not supported here" in ended.stderr, "its reason", ended)
    for name in ("SIGALRM", "SIGTERM"):  # the time is up, and told to end: the table comes all the same
        ended, peers = run(peer, name)
        check(ended.returncode == 0 and len(peers) == EAGER, name, ended)
        check("eager 0.500 ms" in ended.stdout and "left out: the time is up" in ended.stderr, name, ended)
    ended, peers = run(peer, "SIGKILL")
    check(ended.returncode == -signal.SIGKILL and len(peers) == EAGER, "what a killed process leaves", ended)
    if not failed:
        print("peer.py does as it says")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        run_with_stand_in(*sys.argv[1:])
    else:
        sys.exit(main(sys.argv[1]))
