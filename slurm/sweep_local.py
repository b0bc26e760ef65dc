"""The runs of a sweep on this machine: `slurm/pretrain.sh --local` for each, some at a time."""

import signal
import subprocess
import time
from pathlib import Path
from types import FrameType

_POLL_S = 0.2


def run_beside_each_other(
    script: Path, work: Path, names: list[str], parallel: int | None, environment: dict[str, str]
) -> int:
    """Run them all, `parallel` at a time (default 1); 0 when each ended well, else 1.

    Ctrl-C and SIGTERM have those that run save and stop, and start no other one; the same command goes on.
    """
    waiting = list(enumerate(names))
    running: dict[str, subprocess.Popen[bytes]] = {}
    is_stopped, failed = False, False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopped
        is_stopped = True
        for process in running.values():
            if process.poll() is None:
                process.send_signal(number)

    asked = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop) for number in asked}
    try:
        while running or (waiting and not is_stopped):
            while waiting and len(running) < (parallel or 1) and not is_stopped:
                number, name = waiting.pop(0)
                log = work / f"{number}.log"
                words = (work / f"{number}.args").read_text().splitlines()
                print(f"{name}: started, output in {log}", flush=True)
                with log.open("ab") as output:
                    running[name] = subprocess.Popen(
                        ["bash", str(script), "--local", *words],
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # a terminal's Ctrl-C comes to this process, which passes it on once
                    )
            for name, process in list(running.items()):
                if (code := process.poll()) is not None:
                    del running[name]
                    failed = failed or code != 0
                    print(f"{name}: ended with {code}", flush=True)
            time.sleep(_POLL_S)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 1 if failed or waiting else 0
