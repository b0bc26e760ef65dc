"""A trainer of the standard library alone, for tests that need many jobs and no tensor.

    python stand_in.py CONFIG run.dir=DIR

To slurm/pretrain.sh it is what the real one is: ranks meet at MASTER_ADDR:MASTER_PORT and go in step, rank 0 holds the
run folder's lock, saves by rename every `EVERY` steps, and leaves outcome.json; SIGUSR2 and SIGTERM are "save and
stop", agreed by all; a rank that loses another ends with 1. What it computes is a chain of digests to which every rank
adds its share in every step, so that a step that is lost or done twice shows in the end. It ends when there is a file
`ENOUGH` in the run folder.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

EVERY = 5
STEP_S = 0.05
LOST_S = 10.0
"""After so long without a word the other rank is taken for lost."""
MEET_S = 30.0

_told: list[int] = []
for _number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(_number, lambda number, _: _told.append(number))


def share(rank: int, step: int) -> bytes:
    """What a rank adds in a step."""
    return hashlib.sha256(f"{rank} {step}".encode()).digest()


def after(state: str, shares: list[bytes]) -> str:
    """The state after a step."""
    return hashlib.sha256(state.encode() + b"".join(shares)).hexdigest()


def final_state(ranks: int, steps: int) -> str:
    """What an undisturbed run comes to."""
    state = ""
    for step in range(1, steps + 1):
        state = after(state, [share(rank, step) for rank in range(ranks)])
    return state


def load(run_dir: Path) -> tuple[int, str]:
    """Step and state of the newest checkpoint; ValueError for one that is torn."""
    saved = sorted((run_dir / "checkpoints").glob("step-*"))
    return read(saved[-1]) if saved else (0, "")


def read(checkpoint: Path) -> tuple[int, str]:
    """Step and state of a checkpoint; ValueError when it is torn."""
    content = json.loads((checkpoint / "state.json").read_text())
    if hashlib.sha256(content["state"].encode()).hexdigest() != content["digest"]:
        raise ValueError(f"{checkpoint} is torn")
    return content["step"], content["state"]


class Leader:
    """Rank 0."""

    def __init__(self, run_dir: Path, ranks: int, attempt: str) -> None:
        self.run_dir, self.ranks, self.attempt = run_dir, ranks, attempt
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._lock = (run_dir / "lock").open("a+")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._lock.truncate(0)
        self._lock.write(f"rank 0 of {attempt}")
        self._lock.flush()
        for leftover in (run_dir / "checkpoints").glob(".tmp-*"):
            shutil.rmtree(leftover)

    def run(self) -> None:
        """Train to the end, or to where it is told to stop."""
        step, state = load(self.run_dir)
        workers = [self._hear(place) for place in self._meet()]
        with (self.run_dir / "metrics.jsonl").open("a") as metrics:
            while True:
                ends = (self.run_dir / "ENOUGH").exists()
                stops = bool(_told)
                shares = [share(0, step + 1)]
                for talk in workers:
                    said = talk(None)
                    stops |= said["stop"]
                    shares.append(bytes.fromhex(said["share"]) if said["step"] == step + 1 else b"")
                if ends or stops:
                    self._save(step, state)
                    self._outcome("done" if ends else "saved", step)
                    for talk in workers:
                        talk({"go": False})
                    return
                step, state = step + 1, after(state, shares)
                if step % EVERY == 0:
                    self._save(step, state)
                metrics.write(json.dumps({"step": step, "attempt": self.attempt}) + "\n")
                metrics.flush()
                for talk in workers:
                    talk({"go": True, "step": step})
                time.sleep(STEP_S)

    def _meet(self):
        step = load(self.run_dir)[0]
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", int(os.environ["MASTER_PORT"])))
            server.listen()
            server.settimeout(MEET_S)
            met = [server.accept()[0] for _ in range(self.ranks - 1)]
        files = []
        for place in met:
            place.settimeout(LOST_S)
            files.append(place.makefile("rw"))
            files[-1].write(json.dumps({"go": True, "step": step}) + "\n")
            files[-1].flush()
        ordered = {}
        for file in files:
            ordered[json.loads(file.readline())["rank"]] = file
        return [ordered[rank] for rank in sorted(ordered)]

    @staticmethod
    def _hear(file):
        def talk(message):
            if message is None:
                return json.loads(file.readline() or "null") or _lost()
            file.write(json.dumps(message) + "\n")
            file.flush()
            return None

        return talk

    def _save(self, step: int, state: str) -> None:
        folder = self.run_dir / "checkpoints" / f"step-{step:08d}"
        if folder.exists():
            return
        partial = folder.with_name(f".tmp-{step:08d}-{self.attempt}")
        partial.mkdir()
        digest = hashlib.sha256(state.encode()).hexdigest()
        with (partial / "state.json").open("w") as file:
            json.dump({"step": step, "state": state, "digest": digest}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder)
        for old in sorted((self.run_dir / "checkpoints").glob("step-*"))[:-2]:
            shutil.rmtree(old)

    def _outcome(self, outcome: str, step: int) -> None:
        partial = self.run_dir / ".outcome.partial"
        partial.write_text(json.dumps({"outcome": outcome, "step": step, "attempt": self.attempt}))
        partial.replace(self.run_dir / "outcome.json")


def follow(rank: int) -> None:
    """Another rank."""
    end = time.monotonic() + MEET_S
    while True:
        with contextlib.suppress(OSError):
            place = socket.create_connection(
                (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=LOST_S
            )
            break
        if time.monotonic() > end:
            sys.exit("rank 0 never came")
        time.sleep(0.1)
    file = place.makefile("rw")
    said = json.loads(file.readline() or "null") or _lost()
    file.write(json.dumps({"rank": rank}) + "\n")
    while said["go"]:
        step = said["step"] + 1
        file.write(json.dumps({"step": step, "share": share(rank, step).hex(), "stop": bool(_told)}) + "\n")
        file.flush()
        said = json.loads(file.readline() or "null") or _lost()


def _lost():
    raise ConnectionError("the other rank is gone")


def main() -> None:
    """One rank."""
    given = dict(word.split("=", 1) for word in sys.argv[2:])
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    attempt = os.environ["FUSMAE_ATTEMPT"]
    try:
        if rank:
            follow(rank)
        else:
            Leader(Path(given["run.dir"]), ranks, attempt).run()
    except (OSError, ValueError) as error:
        sys.exit(f"rank {rank} of {attempt}: {error!r}")


if __name__ == "__main__":
    main()
