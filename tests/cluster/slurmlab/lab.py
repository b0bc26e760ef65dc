"""The lab itself: start, faults, stop."""

import contextlib
import getpass
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.cluster.slurmlab import processes
from tests.cluster.slurmlab.configuration import LabConfig, load, program, save, why_not_here, write_files
from tests.cluster.slurmlab.network import Network

ROOT = Path(__file__).parents[3]
_UP = {"idle", "mixed", "allocated", "completing"}
_POLL_S = 0.05


class LabError(RuntimeError):
    """The lab does not do what it was told; the message has the end of the daemon's log."""


class Lab:
    """A cluster in a folder. A context manager: whatever happens inside, nothing of it is left at the end."""

    def __init__(self, folder: Path, config: LabConfig, network: Network | None = None) -> None:
        self.folder, self.config, self.network = folder.absolute(), config, network
        self.conf = self.folder / "etc" / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    @classmethod
    def open(cls, folder: Path) -> "Lab":
        """The lab that another process has started in `folder`."""
        config, bridge = load(folder)
        return cls(folder, config, Network(bridge) if bridge else None)

    def __enter__(self) -> "Lab":
        self.up(guarded=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # --- start and stop

    def up(self, *, guarded: bool = False) -> None:
        """Start what is not running and wait until every node is up.

        A guarded lab goes down by itself when the process that started it dies, however it dies.
        """
        if reason := why_not_here():
            raise LabError(reason)
        if not self.conf.exists():
            self._prepare()
        if guarded:
            guard = [sys.executable, "-m", "tests.cluster.slurmlab", "guard", str(self.folder), str(os.getpid())]
            self._start(guard, "guard", {"PYTHONPATH": str(ROOT)})
        try:
            self._munge()
            self.controller_start()
            for node in self.config.names:
                self.node_up(node, wait=False)
            self.wait(lambda: all(self.is_up(node) for node in self.config.names), "all nodes are up")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End every process of the lab and take its network away."""
        processes.kill(self.processes)
        for daemon in self._daemons:
            daemon.wait()
        self._daemons.clear()
        if self.network is not None:
            self.network.remove(self.config.names)

    def processes(self, node: str | None = None) -> list[int]:
        """Pids of the lab's processes (of one node): daemons, scripts, ranks."""
        return processes.of_lab(self.conf, node)

    # --- faults

    def node_down(self, node: str) -> None:
        """Power off: SIGKILL to the node's daemon and to everything that runs there."""
        processes.kill(lambda: self.processes(node))

    def node_up(self, node: str, *, wait: bool = True) -> None:
        """Power on."""
        if not any("slurmd" in _command(pid)[:1] for pid in self.processes(node)):
            slurmd = [_require("slurmd"), "-D", "-f", str(self.conf), "-N", node]
            self._start([*self.inside(node), *slurmd], f"slurmd-{node}", {processes.NODE: node})
        if wait:
            self.wait(lambda: self.is_up(node), f"{node} is up")

    def net_cut(self, node: str) -> None:
        """Pull the node's network cable; its processes live on."""
        self._own_network().set_cable(node, plugged=False)

    def net_heal(self, node: str) -> None:
        """Plug it in again."""
        self._own_network().set_cable(node, plugged=True)

    def controller_kill(self) -> None:
        """SIGKILL to slurmctld."""
        processes.kill(self._controller)

    def controller_stop(self) -> None:
        """End slurmctld as its administrator does: it saves its state, and stays away for a second."""
        for pid in self._controller():
            os.kill(pid, signal.SIGTERM)
        self.wait(lambda: not self._controller(), "slurmctld ends")
        time.sleep(1)

    def controller_start(self) -> None:
        """Start slurmctld and wait until it answers."""
        if not self._controller():
            self._start([_require("slurmctld"), "-D", "-f", str(self.conf)], "slurmctld", {})
        self.wait(lambda: "UP" in self.run("scontrol", "ping", check=False), "slurmctld answers", log="slurmctld")

    # --- use

    @property
    def environ(self) -> dict[str, str]:
        """For commands that are to talk to this cluster: nothing of SLURM's from outside, and no ranks."""
        outer = ("SLURM", "SBATCH", "SRUN", "SLURMLAB")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(outer) and k not in ("RANK", "WORLD_SIZE")}
        return kept | {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str, check: bool = True, environ: Mapping[str, str] | None = None) -> str:
        """Run a command against this cluster, in the repository's root; its output."""
        ran = subprocess.run(
            command, env=self.environ | dict(environ or {}), cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        if check and ran.returncode:
            raise LabError(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout.strip()

    def sbatch(self, *arguments: str, environ: Mapping[str, str] | None = None) -> str:
        """Submit; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, environ=environ).split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field; a controller that is away says nothing."""
        said = self.run("scontrol", "show", "job", "--oneliner", job_id, check=False)
        return dict(word.split("=", 1) for word in said.split() if "=" in word)

    def nodes_of(self, job_id: str) -> list[str]:
        """Nodes that a running job has."""
        names = self.job(job_id).get("NodeList", "")
        return self.run("scontrol", "show", "hostnames", names).split() if names not in ("", "(null)") else []

    def is_up(self, node: str) -> bool:
        """Whether the controller takes the node for usable."""
        said = self.run("sinfo", "--noheader", "-N", "-p", "main", "-n", node, "-o", "%T", check=False)
        return said in _UP

    def wait(self, holds: Callable[[], object], what: str, *, timeout_s: float = 60, log: str = "slurmctld") -> None:
        """Wait until `holds`; LabError with the end of a daemon's log when it does not."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise LabError(f"not so after {timeout_s:.0f} s: {what}\n{self.log(log)}")
            time.sleep(_POLL_S)

    def log(self, daemon: str, lines: int = 20) -> str:
        """The end of a daemon's log and of what it said as it started."""
        found = [self.folder / "log" / f"{daemon}.{kind}" for kind in ("log", "out")]
        text = [path.read_text(errors="replace").splitlines()[-lines:] for path in found if path.exists()]
        return "\n".join(line for part in text for line in part)

    # --- within

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        names = self.config.names
        if self.config.mode == "netns":
            self.network = Network.make(names)
            addresses, controller = self.network.addresses(len(names)), self.network.controller
        else:
            addresses, controller = ["127.0.0.1"] * len(names), "127.0.0.1"
        save(self.config, self.folder, self.network.bridge if self.network else "")
        write_files(self.config, self.folder, addresses, controller)

    def _munge(self) -> None:
        folder = self.folder / "munge"
        key = folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(1024))
        if any("munged" in _command(pid)[:1] for pid in self.processes()):
            return
        files = {"key": "key", "socket": "sock", "pid": "pid", "log": "log", "seed": "seed"}
        options = [f"--{name}{'' if name == 'socket' else '-file'}={folder}/munge.{end}" for name, end in files.items()]
        self._start([_require("munged"), "--foreground", "--force", "--num-threads=2", *options], "munged", {})
        self.wait((folder / "munge.sock").exists, "munged listens", log="munged")

    def _controller(self) -> list[int]:
        return [pid for pid in self.processes() if "slurmctld" in _command(pid)[:1]]

    def inside(self, node: str) -> list[str]:
        """What runs a command on a node of its own network: with its name, hosts and no name server.

        Not `ip netns exec`, which mounts a new /sys without the cgroups that slurmd looks for.
        """
        if self.network is None:
            return []
        etc = self.folder / "etc"
        setup = f'hostname {node}; for f in hosts resolv.conf; do mount --bind {etc}/$f /etc/$f; done; exec "$@"'
        entered = ["nsenter", f"--net=/run/netns/{self.network.namespace(node)}", "unshare", "--uts", "--mount"]
        return [*entered, "sh", "-c", setup, "sh"]

    def _own_network(self) -> Network:
        if self.network is None:
            raise LabError("the network of a lab in mode `ports` cannot be cut; take mode netns, as root")
        return self.network

    def _start(self, command: list[str], name: str, environ: Mapping[str, str]) -> None:
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=self.environ | {"USER": getpass.getuser(), **environ},
                    cwd=self.folder if name != "guard" else ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )


def _require(name: str) -> str:
    path = program(name)
    if path is None:
        raise LabError(why_not_here())
    return path


def _command(pid: int) -> list[str]:
    """A process's command line, the program without its folder."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return [Path(words[0]).name, *words[1:]]
    return []
