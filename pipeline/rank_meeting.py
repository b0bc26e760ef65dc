"""Where ranks meet before they trust each other: a store with time limits, so that a rank that stays away is named.

`torch.distributed.init_process_group` waits for all ranks and then says how many are missing, not which. Here the first
rank hosts a store, each says that it has come, and what follows needs no collective.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from pipeline.distributed import Ranks
from pipeline.errors import RankError

_POLL_S: Final = 0.05
_GRACE_S: Final = 10.0
"""Ranks do not begin to wait at the same moment."""
_LEAVE_S: Final = 5.0


class Meeting:
    """The meeting of a rank with the others; RankError when it cannot reach the first one in `wait_s`.

    The first rank waits for the others until `wait_s` is over, and then goes on with those that came.
    """

    def __init__(self, ranks: Ranks, address: str, port: int, name: str, wait_s: float) -> None:
        self.ranks = ranks
        self._place = (address, port)
        self._wait_s = wait_s
        # torchrun's own agent hosts a store there already.
        has_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._store = self._connect(is_host=ranks.is_first and not has_agent)
        self._store.set(f"came/{ranks.rank}", name)
        if ranks.is_first:
            numbers = range(ranks.world_size)
            came = self._those_with("came", numbers, wait_s)
            self._store.set("came", json.dumps(came))
        self.came: dict[int, str] = {
            int(rank): name for rank, name in json.loads(self._get("came", wait_s + _GRACE_S)).items()
        }
        """By rank, what those that came are called; the same on all of them."""

    @property
    def is_whole(self) -> bool:
        """Whether all ranks came."""
        return len(self.came) == self.ranks.world_size

    def group_store(self) -> Any:
        """For a process group: a connection of its own, which a collective that hangs may block."""
        from torch._C._distributed_c10d import PrefixStore

        return PrefixStore("group", self._connect(is_host=False))

    def hand_in(self, figures: dict[str, Any]) -> None:
        """Leave what this rank measured."""
        self._store.set(f"figures/{self.ranks.rank}", json.dumps(figures))

    def handed_in(self, wait_s: float) -> list[dict[str, Any]]:
        """On the first rank: what each rank left, in their order; those that leave nothing in `wait_s` are left out."""
        found = self._those_with("figures", sorted(self.came), wait_s)
        return [json.loads(found[rank]) for rank in sorted(found)]

    def close(self, is_well: bool) -> None:
        """On the first rank: tell the others how it ended, and host the store until they know."""
        self._store.set("well", str(int(is_well)))
        deadline = time.monotonic() + _LEAVE_S
        while int(self._store.add("left", 0)) < len(self.came) - 1 and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def well(self, wait_s: float) -> bool:
        """On the others: how it ended, by the first rank's word."""
        is_well = self._get("well", wait_s + _GRACE_S) == "1"
        with contextlib.suppress(RuntimeError):  # the store may have gone with its host
            self._store.add("left", 1)
        return is_well

    def _connect(self, is_host: bool) -> Any:
        from torch._C._distributed_c10d import TCPStore

        address, port = self._place
        try:
            return TCPStore(
                address,
                port,
                is_master=is_host,
                wait_for_workers=False,
                timeout=timedelta(seconds=self._wait_s),
            )
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if is_host:
                raise RankError(f"rank 0 cannot listen at {address}:{port}: {reason}") from error
            raise RankError(
                f"rank 0 did not come to {address}:{port} within {self._wait_s:g} s, or cannot be reached there"
            ) from error

    def _get(self, key: str, wait_s: float) -> str:
        try:
            self._store.wait([key], timedelta(seconds=wait_s))
            return bytes(self._store.get(key)).decode()
        except RuntimeError as error:
            raise RankError(f"rank 0 has gone, or said nothing for {wait_s:g} s") from error

    def _those_with(self, name: str, ranks: Sequence[int], wait_s: float) -> dict[int, str]:
        """What ranks left under `name`, as soon as all have, or once `wait_s` is over."""
        deadline = time.monotonic() + wait_s
        found: dict[int, str] = {}
        while True:
            for rank in set(ranks) - set(found):
                if self._store.check([f"{name}/{rank}"]):
                    found[rank] = bytes(self._store.get(f"{name}/{rank}")).decode()
            if len(found) == len(ranks) or time.monotonic() > deadline:
                return found
            time.sleep(_POLL_S)
