"""`engine.compile`: the curve of a run without it, and a word where it cannot be."""

from collections.abc import Callable

import pytest

from tests.dist.conftest import Run

pytestmark = pytest.mark.dist

# Inductor needs a C++ compiler, which a test machine may lack: the backend before it traces the same graph.
EAGER = """
import sys, torch
real = torch.nn.Module.compile
torch.nn.Module.compile = lambda self, **options: (print("compiled"), real(self, backend="aot_eager", **options))
from pipeline.pretrain import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_compiled_run_has_the_curve_of_one_that_is_not(new_run: Callable[..., Run]) -> None:
    options = ("engine.precision=fp32", "run.num_processes=1", "train.steps=6", "train.micro_batch=0")
    plain, compiled = new_run("plain", *options), new_run("compiled", *options, "engine.compile=true")
    compiled.command[1:3] = ["-c", EAGER]
    plain.finish()
    assert "compiled" in compiled.finish()
    expected = [line["loss"] for line in plain.metrics()]
    assert expected[-1] < expected[0]
    assert [line["loss"] for line in compiled.metrics()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.masking=dirichlet"], "engine.compile needs the same number of visible patches"),
        (["engine.zero_stage=3"], "engine.compile does not go with engine.zero_stage=3"),
    ],
)
def test_where_it_cannot_be_it_is_refused(new_run: Callable[..., Run], overrides: list[str], message: str) -> None:
    assert message in new_run("refused", "engine.compile=true", *overrides).finish(code=2)
