"""`python -m slurm.preflight_report FOLDER NODE ...`: who is unfit, by what all nodes found, or by what the probe did.

Leaves the unfit nodes in FOLDER/suspects, with commas, and keeps FOLDER/../unfit: the nodes that the run is to keep
away from, less those that have passed since. Exit code 0: all are fit; 1: not, or it cannot be said; 3: the job was
asked to stop meanwhile, which tells nothing of the nodes.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.command import run_command
from pipeline.metrics import write_whole

STOPPED: Final = 3
SUSPECTS_NAME: Final = "suspects"
UNFIT_NAME: Final = "unfit"
PROBE_NAME: Final = "probe.json"

Answer = dict[str, Any]
"""What `slurm.preflight --json-file` wrote."""


@dataclass(kw_only=True)
class Report:
    """What is to be said, and who is to blame."""

    lines: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)
    is_fit: bool = True
    is_stopped: bool = False

    def fail(self, sentence: str, suspects: Sequence[str]) -> None:
        """Something is wrong; `suspects` are to blame for it."""
        self.is_fit = False
        self.lines.append(sentence)
        self.suspects += [node for node in suspects if node not in self.suspects]


def read_answers(folder: Path, nodes: Sequence[str]) -> dict[str, Answer]:
    """The answers that are there, by node."""
    paths = {node: folder / f"{node}.json" for node in nodes}
    return {node: json.loads(path.read_text()) for node, path in paths.items() if path.exists()}


def judge_nodes(nodes: Sequence[str], answers: Mapping[str, Answer], *, is_late: bool) -> Report:
    """Who is unfit by the nodes' own answers.

    A node is to blame for what it fails alone, or for what is its own; what all fail, and all share, is no node's
    fault. Of two versions of a package, the one that more nodes have is the right one, the first node's where as many
    have either. A node that does not answer is to blame if another one does. With `is_late`, the batch script has ended
    those that did not answer: their having been asked to stop says nothing.
    """
    report = Report()
    stopped = [node for node in answers if answers[node]["is_stopped"]]
    if stopped and not is_late:
        report.is_stopped = True
        report.lines.append("the job was asked to stop")
        return report
    whole = {node: answer for node, answer in answers.items() if node not in stopped}
    silent = [node for node in nodes if node not in whole]
    if silent:
        told = "gave no answer" + (" in time" if is_late else "")
        report.fail(f"{', '.join(silent)} {told}; see the output above", silent if whole else [])
    checks = {node: {check["name"]: check for check in answer["checks"]} for node, answer in whole.items()}
    _add_strays(checks)
    for name in dict.fromkeys(name for found in checks.values() for name in found):
        failed = [node for node in checks if checks[node].get(name, {}).get("state") == "failed"]
        is_common = bool(failed) and len(failed) == len(nodes) and checks[failed[0]][name]["is_shared"]
        for node in failed:
            check = checks[node][name]
            report.fail(_sentence(node, check), [] if is_common else [node])
        if is_common:
            report.lines.append(f"{name} fails on every node, so none of them is to blame")
        for node, found in checks.items():
            if found.get(name, {}).get("state") == "warning":
                report.lines.append("warning: " + _sentence(node, found[name]))
    if report.is_fit:
        took = max(answer["took_s"] for answer in whole.values())
        report.lines.append(f"{len(nodes)} nodes are fit, after {took:.1f} s")
    return report


def _sentence(node: str, check: Mapping[str, Any]) -> str:
    return f"{node}: {check['name']}: {check['measured']}" + (f"; {check['advice']}" if check["advice"] else "")


def _add_strays(checks: Mapping[str, dict[str, Any]]) -> None:
    """Fail the check `packages` of nodes that have other versions than most."""
    versions = {
        node: found["packages"]["figures"]
        for node, found in checks.items()
        if "packages" in found and found["packages"]["state"] == "ok"
    }
    for package in dict.fromkeys(package for found in versions.values() for package in found):
        # Of equal counts, Counter gives the first that it saw: the first node's.
        usual = Counter(found.get(package) for found in versions.values()).most_common(1)[0][0]
        for node, found in versions.items():
            if found.get(package) != usual:
                checks[node]["packages"] |= {
                    "state": "failed",
                    "measured": f"{package} {found.get(package)} where others have {usual}",
                    "advice": "the ranks of a run need the same packages",
                }


def judge_probe(folder: Path, nodes: Sequence[str], ranks_per_node: int) -> Report:
    """Who is unfit by `slurm.probe`, which ran so many ranks on each node.

    Where the first rank left no result, those that came and did not find it have left word; the nodes that did not are
    to blame.
    """
    report = Report()
    path = folder / PROBE_NAME
    if not path.exists():
        came = {json.loads(alone.read_text())["host"] for alone in folder.glob("alone-rank*.json")}
        gone = [node for node in nodes if node not in came]
        report.fail(f"the probe has no result: {', '.join(gone) or 'no node'} did not come", gone if came else [])
        return report
    result = json.loads(path.read_text())
    hosts = {int(rank): host for rank, host in result["came"].items()}
    came_on = Counter(hosts.values())
    absent = [node for node in nodes if came_on[node] < ranks_per_node]
    if absent:
        report.fail(f"the probe: ranks of {', '.join(absent)} did not come", absent if hosts else [])
    silent = sorted({hosts[rank] for rank in result["missing"] if rank in hosts})
    if silent:
        report.fail(f"the probe: {', '.join(silent)} fell silent", silent)
    broken = [rank for rank in result["ranks"] if rank["error"] and not rank["is_victim"]]
    for rank in broken:
        report.fail(f"the probe: rank {rank['rank']} on {rank['host']}: {rank['error']}", [rank["host"]])
    victims = [rank for rank in result["ranks"] if rank["is_victim"]]
    if victims and report.is_fit:
        report.fail(f"the probe: {victims[0]['error']}; no rank of it stands out", [])
    for what, name in (("computes at less than half the usual speed", "slow"), ("got a wrong sum", "wrong")):
        guilty = sorted({hosts[rank] for rank in result[name]})
        if guilty:
            report.fail(f"the probe: {', '.join(guilty)} {what}", guilty if len(guilty) < len(nodes) else [])
    if report.is_fit:
        report.lines.append(
            f"{result['world_size']} ranks reduce {result['num_bytes'] / 2**20:g} MiB at "
            f"{result['busbw_gb_s']:.2f} GB/s (bus, {result['backend']})"
        )
    return report


def keep_unfit(path: Path, nodes: Sequence[str], suspects: Sequence[str]) -> None:
    """Take the nodes that were looked at out of the list of the run's unfit nodes, and put the suspects in."""
    before = path.read_text().split() if path.exists() else []
    unfit = sorted({node for node in before if node not in nodes} | set(suspects))
    write_whole(path, "".join(f"{node}\n" for node in unfit))


def main(argv: list[str] | None = None) -> int:
    """Judge, say so, and leave the names for the batch script."""
    parser = argparse.ArgumentParser(prog="python -m slurm.preflight_report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with NODE.json of each node that answered")
    parser.add_argument("nodes", nargs="+", metavar="NODE", help="all nodes that were asked, the first one first")
    parser.add_argument("--late", action="store_true", help="those without an answer were ended for it")
    parser.add_argument("--probe", type=int, metavar="R", help="judge the probe of R ranks a node instead")
    options = parser.parse_args(argv)
    if options.probe:
        report = judge_probe(options.folder, options.nodes, options.probe)
    else:
        answers = read_answers(options.folder, options.nodes)
        report = judge_nodes(options.nodes, answers, is_late=options.late)
    for line in report.lines:
        print(f"preflight: {line}")
    if report.is_stopped:
        return STOPPED
    write_whole(options.folder / SUSPECTS_NAME, ",".join(report.suspects) + "\n")
    keep_unfit(options.folder.parent / UNFIT_NAME, options.nodes, report.suspects)
    return 0 if report.is_fit else 1


if __name__ == "__main__":
    run_command(main)
