"""A rank's start imports no more than it needs."""

import json
import subprocess
import sys

from tests.dist.conftest import ROOT

PROGRAM = """
import json, sys
import torch
compile = torch.compile
{prepared}
import xformers.ops
import deepspeed.runtime.zero.muon.muon_optimizer  # as its engine does, to ask whether the optimiser is this one
print(json.dumps(["torch._inductor.compile_fx" in sys.modules, torch.compile is compile]))
"""
PREPARED = "from pipeline.engine import import_deepspeed; import_deepspeed(torch.device('cpu'))"


def _told(prepared: str) -> list[bool]:
    command = [sys.executable, "-c", PROGRAM.format(prepared=prepared)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_deepspeed_is_initialised_without_torchs_compiler_which_stays_for_those_who_call_it() -> None:
    assert _told(PREPARED) == [False, True]


def test_the_negative_twin_deepspeed_by_itself_imports_it() -> None:
    assert _told("") == [True, True]
