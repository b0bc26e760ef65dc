"""A real SLURM cluster of several nodes on one machine, with faults to order; stdlib and Debian's packages only."""

from tests.cluster.slurmlab.configuration import LabConfig, can_make_networks, why_not_here
from tests.cluster.slurmlab.lab import Lab, LabError

__all__ = ["Lab", "LabConfig", "LabError", "can_make_networks", "why_not_here"]
