"""What goes wrong between client and server: rules in a file that the filter reads, and its log of what it did."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`times` requests of `method` whose path matches `path`, a regular expression, after the first `skip`."""

    do: str
    """An answer instead of the right one: `503`, `500`, `denied` (403 AccessDenied), `expired` (403 ExpiredToken),
    `expired400` (the same as AWS says it); `hang`: none for `amount` seconds.
    In the body after `amount` bytes: `cut` (FIN), `reset` (RST), `stall` (nothing for `seconds`, then FIN), `flip` (a
    bit); from its start: `slow` (`amount` bytes a second).
    """
    method: str = "GET"
    path: str = "."
    token: str = ""
    """Regular expression: only of clients with such a session token."""
    skip: int = 0
    times: int = 1
    amount: float = 0
    seconds: float = 0


class Faults:
    """The rules of a server; a fault that was not seen does not count."""

    def __init__(self, folder: Path) -> None:
        self.rules, self.log = folder / "faults.json", folder / "faults.log"
        self._number = 0
        self.set([])

    def set(self, faults: list[Fault]) -> None:
        """From now on these, counted anew."""
        self._number += 1
        partial = self.rules.with_suffix(".partial")
        partial.write_text(json.dumps({"set": self._number, "faults": [asdict(fault) for fault in faults]}))
        partial.replace(self.rules)

    def seen(self) -> list[dict]:
        """Each fault of the rules now set that was injected, as `{"do", "method", "path"}`."""
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["set"] == self._number]
