"""A network namespace a node, joined by a bridge; the cable of each can be pulled. Needs root."""

import subprocess
from dataclasses import dataclass

# RFC 2544 sets 198.18.0.0/15 aside for test networks: no machine's own network is there.
NETWORKS = [f"198.{18 + number // 256}.{number % 256}" for number in range(512)]


@dataclass(frozen=True)
class Network:
    """One bridge and its nodes' cables. The bridge's name is what keeps two labs from taking the same addresses."""

    bridge: str

    @classmethod
    def make(cls, nodes: list[str]) -> "Network":
        """Take the first network that no other lab has, and lay a cable to each node."""
        for number in range(len(NETWORKS)):
            network = cls(f"slab{number}")
            if subprocess.run([*_IP, "link", "add", network.bridge, "type", "bridge"], capture_output=True).returncode:
                continue
            _ip("addr", "add", f"{network.controller}/24", "dev", network.bridge)
            _ip("link", "set", network.bridge, "up")
            for place, node in enumerate(nodes, start=1):
                space, cable = network.namespace(node), network.cable(node)
                _ip("netns", "add", space)
                _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
                _ip("link", "set", cable, "master", network.bridge, "up")
                _ip("-n", space, "addr", "add", f"{network.prefix}.{place}/24", "dev", "eth0")
                _ip("-n", space, "link", "set", "eth0", "up")
                _ip("-n", space, "link", "set", "lo", "up")
            return network
        raise RuntimeError(f"all {len(NETWORKS)} networks of labs are taken; `ip link del slabN` removes a dead one's")

    @property
    def prefix(self) -> str:
        """Of the addresses."""
        return NETWORKS[int(self.bridge.removeprefix("slab"))]

    @property
    def controller(self) -> str:
        """Address of the bridge, where the controller listens."""
        return f"{self.prefix}.254"

    def addresses(self, count: int) -> list[str]:
        """Of the nodes."""
        return [f"{self.prefix}.{place}" for place in range(1, count + 1)]

    def namespace(self, node: str) -> str:
        """Name of a node's namespace."""
        return f"{self.bridge}-{node}"

    def cable(self, node: str) -> str:
        """Name of the bridge's end of a node's cable (the kernel allows 15 signs)."""
        return f"{self.bridge}{node}"

    def set_cable(self, node: str, *, plugged: bool) -> None:
        """Pull or plug a node's cable."""
        _ip("link", "set", self.cable(node), "up" if plugged else "down")

    def remove(self, nodes: list[str]) -> None:
        """Take it all away; what is not there is no error."""
        for node in nodes:
            subprocess.run([*_IP, "netns", "del", self.namespace(node)], capture_output=True, check=False)
            subprocess.run([*_IP, "link", "del", self.cable(node)], capture_output=True, check=False)
        subprocess.run([*_IP, "link", "del", self.bridge], capture_output=True, check=False)


_IP = ["ip"]


def _ip(*words: str) -> None:
    subprocess.run([*_IP, *words], check=True, capture_output=True)
