"""Which attempt of a run may publish: the one that began last.

A node that its cluster has given up may live on behind a cut network, train, and save beside the attempt that took its
place. So each attempt leaves its name beside the checkpoints when it begins, and one that finds another's there ends.
"""

import json
from dataclasses import dataclass
from typing import Final

from pipeline.errors import CheckpointError, DataError
from sharding.store import Store

OWNER_NAME: Final = "attempt.json"


@dataclass(frozen=True, kw_only=True)
class Fence:
    """An attempt's right to publish."""

    store: Store
    """Where the checkpoints lie."""
    token: str
    """Tells this attempt from every other; part of a file's name."""
    owner: str
    """Who that is, in words."""

    def take(self) -> None:
        """From now on this attempt publishes, and no earlier one."""
        self.store.write(OWNER_NAME, json.dumps({"token": self.token, "owner": self.owner}).encode())

    def check(self) -> None:
        """CheckpointError when another attempt has begun since."""
        try:
            found = json.loads(self.store.read(OWNER_NAME))
        except DataError:
            return  # the folder was emptied; nobody else trains there
        except ValueError:
            found = {}
        if found.get("token") != self.token:
            raise CheckpointError(
                f"another attempt of this run ({found.get('owner', 'unknown')}) has begun and publishes to "
                f"{self.store.url}; this one ({self.owner}) saves no more and ends"
            )
