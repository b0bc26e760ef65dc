"""`python -m benchmarks.model` and `python -m benchmarks.gpu`: small on the CPU, and the rivals that they run."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu, gpu_rows, model
from benchmarks.model_contenders import activation_bytes, make_naive, make_ours, make_timm_mae
from benchmarks.model_rivals import NaiveFusMAE, TimmBlockMAE, equal_flops_visible
from benchmarks.stream_report import Entry
from fusmae import FusMAE, FusMAEConfig
from fusmae.flops import forward_flops
from pipeline.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning"),  # xformers' lazy import
    pytest.mark.filterwarnings("ignore:.*torch.distributed.reduce_op.*:FutureWarning"),  # DeepSpeed looks at it
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),  # DeepSpeed's import compiles with it
]

CPU = torch.device("cpu")
TINY = FusMAEConfig(**model.XAE, **model.QUICK, attention_backend="math")
COMPARED = {
    "quick": TINY,
    "model": FusMAEConfig(**model.XAE, **model.SIZE),
    **{size.title: FusMAEConfig(**size.config) for size in gpu.SIZES},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def run(capsys, command, *arguments):
    before = torch.get_num_threads()
    assert command.main([*arguments, "--quick", "--json"]) == 0
    assert torch.get_num_threads() == before
    return json.loads(capsys.readouterr().out)


def check_shape(result):
    assert set(result) == {"machine", "rows", "ratios"}
    assert {"cpu", "cores", "python", "load", "torch"} <= set(result["machine"])
    for row in result["rows"]:
        assert row["low"] <= row["value"] <= row["high"], row
        assert row["value"] > 0 and row["unit"], row
    assert all(value > 0 for value in result["ratios"].values())


def test_the_model_s_benchmark_measures_all_contenders_and_all_ratios(capsys):
    result = run(capsys, model, "--rounds", "1", "--threads", "1", "--batch", "2")
    check_shape(result)
    units = {model.STEP, model.RATE, model.FLOPS, model.KEPT, model.ONE}
    names = {row["name"] for row in result["rows"]}
    assert len(names) == 8 and len(result["rows"]) == 8 * len(units)
    assert {row["unit"] for row in result["rows"]} == units
    assert not any("note" in row for row in result["rows"])  # the backends' losses agree
    promised = {"vs_timm_mae", "vs_naive", "xformers_vs_sdpa_step", "packed_vs_padded_step", "packed_vs_padded_memory"}
    assert promised <= set(result["ratios"])
    kept = {row["name"]: row["value"] for row in result["rows"] if row["unit"] == model.KEPT}
    assert kept["ours, xformers"] < kept["ours, math"] < kept["naive Fus-MAE"]


def test_the_gpu_s_benchmark_runs_small_on_the_cpu(capsys, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    result = run(capsys, gpu, "--device", "cpu")
    failed = [f"{row['name']}: {row.get('note')}" for row in result["rows"] if row["value"] is None]
    assert not failed
    check_shape(result)
    by_unit = {unit: {row["name"] for row in result["rows"] if row["unit"] == unit} for unit in ("GB/s", "TFLOP/s")}
    assert by_unit == {"GB/s": {"copy on the device, read and written"}, "TFLOP/s": {"bf16 matmul of 256 squared"}}
    timed = {row["name"] for row in result["rows"] if row["unit"] == gpu_rows.RATE}
    for kind in (
        "ours, sdpa, compiled",
        "timm-block MAE, eager",
        "naive Fus-MAE, eager",
        "ZeRO 2 bf16",
        "DDP fp32",
    ):
        assert f"tiny 32/4, {kind}" in timed
    assert {"mfu_vit_b_of_measured", "vs_naive", "vs_timm_mae", "packed_vs_padded_step"} <= set(result["ratios"])
    assert "mfu_vit_b" not in result["ratios"]  # no datasheet of this processor
    assert not torch.distributed.is_initialized() and "MASTER_PORT" not in os.environ


def test_a_table_goes_into_its_section(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- gpu: begin -->\nold\n<!-- gpu: end -->\nafter\n")
    assert gpu.main(["--device", "cpu", "--quick", "--minutes", "0", "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.count("not run (time)") == len(re.findall(r"^\| tiny", text, re.MULTILINE)) > 10
    assert text.split("-->\n")[1].split("\n<!--")[0] in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="--quick"):
        gpu.main(["--device", "cpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        gpu.main([])
    with pytest.raises(ConfigError, match="--rounds"):
        model.main(["--rounds", "-1"])


@pytest.mark.parametrize("module", ["benchmarks.model", "benchmarks.gpu"])
def test_help_needs_no_torch(module):
    absent = "sys.modules['torch'] = None; sys.argv = ['program', '--help']"
    program = f"import runpy, sys; {absent}; runpy.run_module({module!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "usage:" in ran.stdout


@pytest.mark.parametrize("name", COMPARED)
def test_the_timm_block_mae_costs_what_ours_costs(name):
    config = COMPARED[name]
    num_visible, flops = equal_flops_visible(config)
    assert flops == pytest.approx(forward_flops(config), rel=0.02)
    assert num_visible == pytest.approx(2 * config.num_visible, rel=0.2)  # as many tokens, too
    with torch.device("meta"):
        rival = TimmBlockMAE(config, num_visible)
        image = torch.empty(1, 14, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counting:
        rival(image)
    assert counting.get_total_flops() == flops


def test_other_numbers_of_visible_patches_cost_more_or_less():
    num_visible, flops = equal_flops_visible(TINY)
    for more in (-4, 4):
        with torch.device("meta"), FlopCounterMode(display=False) as counting:
            TimmBlockMAE(TINY, num_visible + more)(torch.empty(1, 14, 32, 32))
        assert abs(counting.get_total_flops() - flops) > 0.02 * flops


def test_training_flops_of_the_three_are_the_same_within_what_is_allowed():
    counts = {}
    for name, make in (("ours", make_ours), ("timm", make_timm_mae), ("naive", make_naive)):
        contender = make(TINY, 2, CPU)
        # Attention through sdpa is invisible to the counter on the CPU; the written-out one is not.
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            FlopCounterMode(display=False) as count,
        ):
            contender.loss(contender.model).backward()
        counts[name] = count.get_total_flops()
    assert counts["timm"] == pytest.approx(counts["ours"], rel=0.02)
    assert counts["ours"] < counts["naive"] < 1.2 * counts["ours"]


@pytest.mark.parametrize("name", ["model", gpu.SIZES[0].title])
def test_the_naive_model_costs_a_little_more_than_ours(name):
    config = COMPARED[name]
    with torch.device("meta"):
        naive = NaiveFusMAE(config)
    naive = naive.to_empty(device="cpu")
    images = {m.name: torch.zeros(1, len(m.bands), config.image_size, config.image_size) for m in config.modalities}
    with FlopCounterMode(display=False) as counting, torch.no_grad():
        naive(images)
    assert 1 < counting.get_total_flops() / forward_flops(config) < 1.2


@pytest.mark.parametrize("make", [make_timm_mae, make_naive, make_ours])
def test_all_learn(make):
    contender = make(TINY, 4, CPU)
    optimiser = torch.optim.AdamW(contender.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = contender.loss(contender.model)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])


def test_the_naive_model_has_our_parameters_and_a_direction_each_way():
    naive, ours = NaiveFusMAE(TINY), FusMAE(TINY)
    assert sum(p.numel() for p in naive.parameters()) == sum(p.numel() for p in ours.parameters())
    images = {m.name: torch.randn(1, len(m.bands), 32, 32) for m in TINY.modalities}
    with torch.no_grad():
        before = naive.features(images)
        swapped = naive.features({"s1": images["s1"], "s2": -images["s2"]})
    assert not torch.equal(before, swapped)


def test_a_plain_mae_does_not_see_what_is_hidden():
    num_visible, _ = equal_flops_visible(TINY)
    rival = TimmBlockMAE(TINY, num_visible)
    seen = []
    rival.blocks.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    image = torch.randn(2, 14, 32, 32)
    rival(image)
    rival.features(image)
    assert seen == [(2, num_visible + 1, 64), (2, 129, 64)]


def test_kept_bytes_are_those_of_the_activations_alone():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 32), torch.nn.Linear(32, 4)

        def forward(self, x):
            return self.second(torch.nn.functional.gelu(self.first(x))).sum()

    x = torch.randn(16, 8)
    contender = gpu_rows.Contender(
        model=Small(), loss=lambda call: call(x), features=lambda: x, batch=16, train_flops=0
    )
    # The input, GELU's input and its output; of the weights none.
    assert activation_bytes(contender) == 4 * 16 * (8 + 32 + 32)


def bench(**changes):
    return gpu_rows.Bench(
        **{"device": CPU, "clock": gpu_rows.Clock(1), "compiler": "eager", "repetitions": 1, "least_s": 0.0, **changes}
    )


def test_a_batch_is_halved_until_it_fits_and_remembered():
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch > 3:
            raise torch.OutOfMemoryError("too much")

    rows = bench()
    gpu_rows.with_fitting_batch(rows, "a", 12, measure)
    gpu_rows.with_fitting_batch(rows, "a", 12, measure)
    assert tried == [12, 6, 3, 3]


def test_what_fits_in_no_batch_is_a_row_that_says_so():
    def measure(batch):
        raise torch.OutOfMemoryError("too much")

    rows, entry = bench(), Entry(name="big")
    gpu_rows.attempt(rows, entry, "eager", lambda: gpu_rows.with_fitting_batch(rows, "a", 12, measure))
    assert entry.note == "out of memory"


def test_a_failure_is_one_line_of_a_row():
    def fail():
        raise RuntimeError("the compiler | said\nmany things " * 20)

    entry = Entry(name="bad")
    gpu_rows.attempt(bench(), entry, "compiled", fail)
    assert entry.note.startswith("failed: RuntimeError: the compiler / said many things")
    assert len(entry.note) < 200 and "\n" not in entry.note


def test_a_row_that_would_end_too_late_is_not_started():
    now = [0.0]

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds)

    rows = bench(clock=gpu_rows.Clock(1, lambda: now[0]))
    entries = [Entry(name=str(number)) for number in range(4)]
    gpu_rows.attempt(rows, entries[0], "compiled", takes(35))
    gpu_rows.attempt(rows, entries[1], "compiled", takes(35))
    gpu_rows.attempt(rows, entries[2], "eager", takes(30))
    gpu_rows.attempt(rows, entries[3], "eager", takes(1))
    assert [entry.note for entry in entries] == ["", "not run (time)", "", "not run (time)"]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_a_datasheet_is_that_of_the_whole_card(name, tflops):
    assert gpu_rows.datasheet_tflops(name) == tflops


def test_utilisation_is_the_model_s_operations_over_the_datasheet(monkeypatch):
    monkeypatch.setattr(gpu_rows, "timed", lambda bench, step: [0.5])
    entry = Entry(name="row")
    gpu_rows.measure_step(bench(datasheet=100.0, matmul=80.0), entry, lambda: None, 10, int(1e12))
    figures = {unit: entry.median(unit) for unit in entry.figures}
    assert figures == {
        gpu_rows.RATE: 20,
        gpu_rows.STEP: 500,
        gpu_rows.MFU: 20,
        gpu_rows.MFU_MEASURED: 25,
        gpu_rows.BATCH: 10,
    }
    key = "ours, xformers, eager, ViT-B 120/8"
    assert gpu.ratios({key: entry}, "ViT-B 120/8")["mfu_vit_b"] == 0.2
