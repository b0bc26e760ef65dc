"""The whole path on real Sentinel pairs in minutes: archives, shards, a killed and resumed training, figures, report.

Every stage is a command that a user would type; its output goes to a log file. The demo fails when a promise does:
when the resumed run does not repeat what the killed one did, or the model has not learnt more than it would by chance.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pipeline.command import run_command
from pipeline.config import load_settings
from pipeline.distributed import cpu_multiplies_bf16
from pipeline.errors import FusMAEError
from pipeline.metrics import read_lines
from pipeline.report import LossFall, loss_fall
from pipeline.samples import DEMO_WHEELS, fetch_samples
from pipeline.settings import Settings

ROOT: Final = Path(__file__).resolve().parent.parent
CONFIG: Final = ROOT / "configs" / "demo.yaml"
KILL_AT: Final = 0.55
"""Share of the steps after which the run is killed."""
LEAST_FALL: Final = 0.3
"""Share by which the loss must fall from the first to the last tenth of the steps."""
LEAST_STEPS: Final = 20
_POLL_S: Final = 0.02
_TELL_S: Final = 5.0


class DemoError(FusMAEError):
    """A stage failed, or a promise was not kept."""


class Demo:
    """The demo in one folder, stage by stage."""

    def __init__(self, folder: Path, steps: int | None) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.logs = folder / "logs"
        self.data_set = folder / "dataset"
        self._began = time.monotonic()
        overrides = [f"data.url={self.data_set}", f"run.dir={self.run_dir}"]
        if steps is not None:
            begun = load_settings(CONFIG, [])
            overrides += [
                f"train.steps={steps}",
                f"optim.warmup_steps={min(begun.optim.warmup_steps, steps - 1)}",
                f"checkpoint.every={max(4, begun.checkpoint.every * steps // begun.train.steps)}",
            ]
        gpus = _count_gpus()
        if gpus == 1:
            overrides.append("run.num_processes=1")
        self.in_fp32 = not gpus and not cpu_multiplies_bf16()
        if self.in_fp32:
            overrides.append("engine.precision=fp32")
        self.settings: Settings = load_settings(CONFIG, overrides)
        config = os.path.relpath(CONFIG) if CONFIG.is_relative_to(Path.cwd()) else str(CONFIG)
        self._pretrain = ["-m", "pipeline.pretrain", config, *overrides]

    def say(self, words: str) -> None:
        """One line, after the time since the start."""
        elapsed = int(time.monotonic() - self._began)
        print(f"[{elapsed // 60}:{elapsed % 60:02d}] {words}", flush=True)

    def fetch(self) -> list[Path]:
        """Fetch the sample pairs; returns their folders."""
        return fetch_samples(self.folder / "data", DEMO_WHEELS, say=self.say)

    def build(self, sources: list[Path]) -> None:
        """Shards from the sample pairs, and every byte of them verified."""
        self.say("building shards from the sample pairs")
        arguments = []
        for source in sources:
            name = "bigearthnet-v1" if source.name.startswith("bigearthnet-v1") else "reben"
            arguments += ["--source", name, "--root", str(source)]
        self._command("build", ["-m", "sharding.build", *arguments, "--out", str(self.data_set)])
        self._command("verify", ["-m", "sharding.verify", str(self.data_set)])
        self.say(f"the data set {self.data_set} is verified: {self._last_line('verify')}")

    def train(self) -> tuple[int, int, int]:
        """Train, kill, resume; returns the steps killed after and resumed from, and how many lines were compared."""
        if self.run_dir.exists():
            self.say(f"removing the run of an earlier demo, {self.run_dir}")
            shutil.rmtree(self.run_dir)
        steps, every = self.settings.train.steps, self.settings.checkpoint.every
        kill_at = int(steps * KILL_AT) // every * every + every // 2 + 1
        ranks = max(1, self.settings.run.num_processes)
        precision = self.settings.engine.precision + (", for this CPU would emulate bf16" if self.in_fp32 else "")
        self.say(
            f"training {steps} steps on {ranks} ranks in {precision}; the run will be killed after about {kill_at}"
        )
        self._train_and_kill(kill_at)
        before = {path.name: read_lines(path) for path in sorted(self.run_dir.glob("trace-rank*.jsonl"))}
        killed = max((line["step"] for lines in before.values() for line in lines), default=0)
        if killed >= steps or killed % every == 0:
            raise DemoError(
                f"the run was killed after step {killed} of {steps}, where nothing can be shown; run the demo again"
            )
        with (self.run_dir / "events-demo.jsonl").open("a") as events:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            events.write(json.dumps({"time": now, "event": "kill", "step": killed}) + "\n")
        self.say(f"killed all processes of the run with SIGKILL after step {killed}; the same command again")
        with self._start("resume", self._pretrain) as process:
            self._follow(process, "resume", steps)
        resumed = self._resumed_step()
        compared = self.compare_traces(before, resumed, killed)
        self.say(f"resumed from step {resumed}: steps {resumed + 1} to {killed}, trained twice, are identical")
        return killed, resumed, compared

    def evaluate(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The results of the linear probe and of the reconstruction."""
        results = []
        for name in ("linear", "reconstruction"):
            self.say(f"evaluating: {name}")
            self._command(f"evaluate-{name}", ["-m", "pipeline.evaluate", name, str(self.run_dir)])
            results.append(json.loads((self.run_dir / "evaluation" / f"{name}.json").read_text()))
        return results[0], results[1]

    def report(self) -> Path:
        """Write the report; returns its path."""
        self.say("writing the report")
        self._command("report", ["-m", "pipeline.report", str(self.run_dir)])
        return self.run_dir / "report.html"

    def fall(self) -> LossFall:
        """How far the loss fell, of a curve without a gap or a double step."""
        metrics = read_lines(self.run_dir / "metrics.jsonl")
        steps = [line["step"] for line in metrics]
        if steps != list(range(1, self.settings.train.steps + 1)):
            raise DemoError(f"{self.run_dir / 'metrics.jsonl'} does not hold each step from 1 on once")
        return loss_fall([line["loss"] for line in metrics])

    def _train_and_kill(self, kill_at: int) -> None:
        with self._start("pretrain", self._pretrain) as process:
            self._follow(process, "pretrain", kill_at)
        if process.returncode is not None and process.returncode >= 0:
            raise DemoError(f"the run ended before it could be killed; see {self.logs / 'pretrain.log'}")

    def _follow(self, process: "subprocess.Popen[bytes]", stage: str, until: int) -> None:
        """Tell the progress of a training until it has logged step `until`, or until it ends with that step."""
        # What stands there before a resumed run has cut it back is no progress of this one.
        told, told_step, step = time.monotonic(), _last_object(self.run_dir / "metrics.jsonl").get("step", 0), 0
        is_last = until == self.settings.train.steps
        while step < until or is_last:
            ended = process.poll()
            last = _last_object(self.run_dir / "metrics.jsonl")
            step = last.get("step", 0)
            if time.monotonic() - told > _TELL_S and step != told_step:
                told, told_step = time.monotonic(), step
                self.say(f"step {step}/{self.settings.train.steps}, loss {last['loss']:.3f}")
            if ended is not None:
                if ended or step < until:
                    raise self._failed(stage, ended)
                return
            time.sleep(_POLL_S)

    def _resumed_step(self) -> int:
        events = read_lines(self.run_dir / "events-rank00000.jsonl")
        resumes = [event for event in events if event["event"] == "resume"]
        if len(resumes) != 1:
            raise DemoError(f"{self.run_dir} tells of {len(resumes)} resumes where there was one kill")
        return int(resumes[0].get("from_step", resumes[0]["step"]))

    def compare_traces(self, before: dict[str, list[dict[str, Any]]], resumed: int, killed: int) -> int:
        """Compare keys, masks and exact losses of the steps that were trained twice, on each rank."""
        compared = 0
        for name, lines in before.items():
            again = {line["step"]: line for line in read_lines(self.run_dir / name)}
            for line in lines:
                if resumed < line["step"] <= killed:
                    if again.get(line["step"]) != line:
                        raise DemoError(
                            f"step {line['step']} of {name} differs between the killed run and the resumed one: "
                            f"{line} before, {again.get(line['step'])} after"
                        )
                    compared += 1
        if not compared:
            raise DemoError("no step was trained twice, so the resume shows nothing; run the demo again")
        return compared

    def _command(self, stage: str, arguments: list[str]) -> None:
        with self._start(stage, arguments) as process:
            code = process.wait()
        if code:
            raise self._failed(stage, code)

    @contextlib.contextmanager
    def _start(self, stage: str, arguments: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """Start python with `arguments` in a session of its own; after the block all of the session is dead."""
        self.logs.mkdir(parents=True, exist_ok=True)
        search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with (self.logs / f"{stage}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(os.environ, PYTHONPATH=search),
            )
            try:
                yield process
            finally:
                kill_session(process)

    def _failed(self, stage: str, code: int) -> DemoError:
        said = self._last_line(stage).removeprefix("error: ")
        return DemoError(f"stage '{stage}' ended with code {code} ({said}); see {self.logs / f'{stage}.log'}")

    def _last_line(self, stage: str) -> str:
        lines = (self.logs / f"{stage}.log").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def _last_object(path: Path) -> dict[str, Any]:
    """The last whole line of a JSON-lines file, however long it is; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            last: dict[str, Any] = json.loads(line)
            return last
    return {}


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL every process of the session that `process` leads, at once, and wait for their end."""
    deadline = time.monotonic() + 30
    while members := _session_members(process.pid):
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.poll()
        if time.monotonic() > deadline:
            raise DemoError(f"the processes {members} do not die")
        time.sleep(0.01)
    process.wait()


def _session_members(session: int) -> list[int]:
    """Living processes of a session, on Linux."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                # pid (name) state ppid pgrp session ...: the name may hold anything, the rest no parenthesis.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    members.append(int(entry.name))
    return members


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _enough_steps(text: str) -> int:
    """At least as many steps as a kill between two saves needs."""
    steps = int(text)
    if steps < LEAST_STEPS:
        raise argparse.ArgumentTypeError(
            f"{steps} steps are too few for saves, a kill and a resume; write {LEAST_STEPS} or more"
        )
    return steps


def check_learning(fall: LossFall, measured: dict[str, Any]) -> None:
    """DemoError when the loss did not fall enough or the model is no better than its baselines.

    `measured` is the reconstruction's result on the split that was trained on.
    """
    if fall.share < LEAST_FALL:
        raise DemoError(
            f"the loss fell from {fall.first:.3f} to {fall.last:.3f}, by {fall.share:.0%}; "
            f"at least {LEAST_FALL:.0%} were expected"
        )
    worst = max(fall.last, measured["model"]["total"])
    for key, title in (("band_mean", "predicting each band's mean"), ("shuffled", "its own with shuffled tokens")):
        if worst >= measured[key]["total"]:
            raise DemoError(f"the model's loss {worst:.3f} is not below that of {title}, {measured[key]['total']:.3f}")


def run_demo(folder: Path, steps: int | None) -> Path:
    """All stages; returns the report's path. DemoError names the stage that failed or the promise not kept."""
    demo = Demo(folder, steps)
    demo.build(demo.fetch())
    killed, resumed, compared = demo.train()
    linear, reconstruction = demo.evaluate()
    report = demo.report()

    measured = reconstruction["splits"][demo.settings.data.split]
    fall = demo.fall()
    figures = "; ".join(
        f"{row['modalities'].upper()} {row['encoder']['micro']:.2f} / {row['encoder']['macro']:.2f}"
        for row in linear["results"]
    )
    demo.say("done")
    print(f"resume    killed after step {killed}, resumed from {resumed}; {compared} repeated steps x ranks identical")
    print(f"loss      {fall.first:.3f} -> {fall.last:.3f} ({-fall.share:.0%}) over {demo.settings.train.steps} steps")
    print(
        f"          on the training split: {measured['model']['total']:.3f}; each band's mean "
        f"{measured['band_mean']['total']:.3f}; visible tokens shuffled {measured['shuffled']['total']:.3f}"
    )
    print(
        f"probe     micro / macro AP: {figures} on {linear['splits']['test']['samples']} test samples: too few to judge"
    )
    check_learning(fall, measured)
    return report


def main(argv: list[str] | None = None) -> int:
    """Show the whole path on real Sentinel-1/2 pairs, with a kill in the middle of the training."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.demo", description=main.__doc__)
    parser.add_argument("--dir", default="demo", metavar="DIR", help="folder of the demo; default: demo")
    parser.add_argument(
        "--fetch-only", action="store_true", help="only fetch the sample pairs, those of the tests too (about 165 MB)"
    )
    parser.add_argument(
        "--steps", type=_enough_steps, metavar="N", help="train N steps, not those of configs/demo.yaml"
    )
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    folder = Path(arguments.dir)
    # `make` and service managers end a command with SIGTERM: its children must end then, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.fetch_only:
        fetch_samples(folder / "data")
        return 0
    print(f"report: {run_demo(folder, arguments.steps)}")
    return 0


if __name__ == "__main__":
    run_command(main)
