"""What a lab is made of, and the files that tell SLURM so."""

import getpass
import json
import re
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
PACKAGES = "apt-get install slurm-wlm munge slurm-wlm-basic-plugins"
SBIN = "/usr/sbin:/sbin"


@dataclass(frozen=True, kw_only=True)
class LabConfig:
    """Size and temper of a lab."""

    mode: str = "ports"
    """`ports`: no privileges, all nodes are this machine's address; `netns`: root, a network namespace a node."""
    nodes: int = 3
    cpus: int = 1
    """Of a node; more than the machine has is allowed."""
    memory_mib: int = 4000
    gpus: int = 0
    """Of a node; files stand for the devices, so SLURM counts and gives them, and nothing can use them."""
    node_timeout_s: int = 5
    """Silence after which the controller gives a node up."""
    kill_wait_s: int = 5
    grace_s: int = 10
    """What a preempted job has to save."""
    requeue_wait_s: int = 5
    """How long a requeued job waits (`cred_expire`): 120 by default, 5 is the least that SLURM takes."""
    extra: tuple[str, ...] = field(default=())
    """More lines of slurm.conf."""

    @property
    def names(self) -> list[str]:
        """Of the nodes: n1, n2, ..."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def program(name: str) -> str | None:
    """Path of a program of SLURM's; those of the superuser are not on every user's PATH."""
    return shutil.which(name) or shutil.which(name, path=SBIN)


def why_not_here() -> str:
    """Why no lab can be started here; empty when it can."""
    missing = [name for name in PROGRAMS if program(name) is None]
    return f"needs SLURM: {PACKAGES} ({', '.join(missing)} not found)" if missing else ""


def can_make_networks() -> bool:
    """Whether `netns` labs work here."""
    if program("ip") is None:
        return False
    probe = ["unshare", "--net", "--mount", "--uts", "true"]
    return getpass.getuser() == "root" and subprocess.run(probe, capture_output=True, check=False).returncode == 0


def free_ports(count: int) -> list[int]:
    """TCP ports that the kernel gave, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def save(config: LabConfig, folder: Path, network: str) -> None:
    """Write what another process needs to find the lab in `folder`."""
    (folder / "lab.json").write_text(json.dumps(asdict(config) | {"network": network}))


def load(folder: Path) -> tuple[LabConfig, str]:
    """What `save` wrote: the configuration and the name of the bridge."""
    said = json.loads((folder / "lab.json").read_text())
    network = said.pop("network")
    return LabConfig(**said | {"extra": tuple(said["extra"])}), network


def write_files(config: LabConfig, folder: Path, addresses: list[str], controller: str) -> None:
    """slurm.conf and what stands beside it; `addresses` are the nodes'."""
    for name in ("etc", "state", "log", "munge", *(f"spool-{node}" for node in config.names)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "munge").chmod(0o711)
    port, *node_ports = free_ports(config.nodes + 1)
    user, host = getpass.getuser(), socket.gethostname().split(".")[0]
    own_hosts = config.mode == "netns"
    lines = [
        "ClusterName=lab",
        f"SlurmctldHost={host}({controller})",
        f"SlurmUser={user}",
        f"SlurmdUser={user}",
        f"SlurmctldPort={port}",
        # Job ids decide the ports at which ranks meet: those of two labs on one machine must not be the same.
        f"FirstJobId={port}",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge/munge.sock,cred_expire={config.requeue_wait_s}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd-%n.log",
        "MailProg=/bin/true",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "ReturnToService=2",
        f"SlurmdTimeout={config.node_timeout_s}",
        f"SlurmctldTimeout={config.node_timeout_s}",
        "InactiveLimit=0",
        # Longer than a kill takes: else slurmctld asks again a minute later, and ends the step of the same number that
        # a requeued job has by then.
        f"MessageTimeout={config.kill_wait_s + 2}",
        f"KillWait={config.kill_wait_s}",
        "MinJobAge=3600",
        "SlurmdParameters=config_overrides",
        "UnkillableStepTimeout=20",
        "JobRequeue=1",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        *(["GresTypes=gpu"] if config.gpus else []),
        *config.extra,
    ]
    gres = []
    hosts = ["127.0.0.1 localhost", f"{controller} {host}"]
    for name, address, node_port in zip(config.names, addresses, node_ports, strict=True):
        where = f"NodeHostname={name if own_hosts else host} NodeAddr={address} Port={node_port}"
        size = f"CPUs={config.cpus} RealMemory={config.memory_mib}" + (
            f" Gres=gpu:{config.gpus}" if config.gpus else ""
        )
        lines.append(f"NodeName={name} {where} {size} State=UNKNOWN")
        for number in range(config.gpus):
            device = folder / "etc" / f"{name}-gpu{number}"
            device.touch()  # one without a file counts as none
            gres.append(f"NodeName={name} Name=gpu File={device}")
        hosts.append(f"{address} {name}")
    common = "Nodes=ALL MaxTime=INFINITE State=UP"
    lines += [
        f"PartitionName=main {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={config.grace_s}",
        f"PartitionName=high {common} PriorityTier=10 PreemptMode=OFF",
    ]
    (folder / "etc" / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "etc" / "gres.conf").write_text("".join(f"{line}\n" for line in gres))
    (folder / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
    (folder / "etc" / "resolv.conf").write_text("options timeout:1 attempts:1\n")
    (folder / "etc" / "cgroup.conf").write_text(f"CgroupPlugin={_cgroup_plugin()}\n")


def _cgroup_plugin() -> str:
    """No cgroup is used, but slurmd loads a plugin all the same, and one that needs no hierarchy is named by version.

    `disabled` exists from 24.05; before that, v1 is the one that starts without a mounted hierarchy.
    """
    said = subprocess.run([program("slurmd") or "slurmd", "-V"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found, said
    return "disabled" if (int(found[1]), int(found[2])) >= (24, 5) else "cgroup/v1"
