"""Several processes that measure together, started as `pipeline.pretrain` starts its ranks."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.distributed import Ranks, ranks_from
from pipeline.errors import ConfigError
from pipeline.launch import follow_launcher, start_ranks

_CONSOLE = "console.txt"


def measured_by_ranks(module: str, spec: dict[str, Any], num_ranks: int) -> Any:
    """What rank 0 of `num_ranks` processes of `module` measured; `spec` gets a folder of its own under `folder`."""
    with tempfile.TemporaryDirectory(prefix="bench-engine-", dir=spec.get("under")) as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec | {"folder": folder}))
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(spec["threads"])
        try:
            code = start_ranks(module, [str(path)], num_ranks)
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        if code:
            console = Path(folder) / _CONSOLE
            said = console.read_text()[-2000:] if console.exists() else ""
            raise ConfigError(f"{module} ended with code {code} on {num_ranks} ranks; see above {said}")
        return json.loads((Path(folder) / "result.json").read_text())


def measure_as_rank(measure: Callable[[dict[str, Any], Ranks], Any]) -> None:
    """The other side: what a process of `measured_by_ranks` does. What the run says goes into a file, as in a job."""
    follow_launcher()
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    console = os.open(folder / _CONSOLE, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    os.dup2(console, sys.stdout.fileno())
    ranks = ranks_from(os.environ)
    assert ranks is not None
    import torch

    torch.set_num_threads(spec["threads"])
    result = measure(spec, ranks)
    if ranks.is_first:
        (folder / "result.json").write_text(json.dumps(result))
