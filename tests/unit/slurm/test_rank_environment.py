import re

import pytest

from pipeline.errors import ConfigError
from slurm.environment import from_local, from_slurm, ranks_of_nodes

RANK_5_OF_7 = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_TASKS_PER_NODE": "2(x3),1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "15007",
    "CUDA_VISIBLE_DEVICES": "4,5",
}


def test_a_rank_of_srun_gets_its_six_variables_and_no_others():
    assert from_slurm(RANK_5_OF_7) == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "15007",
    }


def test_a_last_node_with_fewer_ranks_knows_its_own_count():
    last = {**RANK_5_OF_7, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}
    assert from_slurm(last)["LOCAL_WORLD_SIZE"] == "1"


def test_the_steps_layout_goes_before_the_jobs():
    step = {**RANK_5_OF_7, "SLURM_STEP_NUM_TASKS": "12", "SLURM_STEP_TASKS_PER_NODE": "4(x3)"}
    assert (from_slurm(step)["WORLD_SIZE"], from_slurm(step)["LOCAL_WORLD_SIZE"]) == ("12", "4")


@pytest.mark.parametrize("missing", sorted(set(RANK_5_OF_7) - {"CUDA_VISIBLE_DEVICES"}))
def test_a_missing_variable_is_named(missing):
    with pytest.raises(ConfigError, match=rf"^{missing} not set"):
        from_slurm({name: value for name, value in RANK_5_OF_7.items() if name != missing})


def test_all_missing_variables_are_named_at_once():
    with pytest.raises(ConfigError, match=r"SLURM_PROCID, SLURM_LOCALID, .*MASTER_PORT not set"):
        from_slurm({})


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_NTASKS", "MASTER_PORT"])
def test_a_value_that_is_no_number_is_named(name):
    with pytest.raises(ConfigError, match=rf"{name} is 'x', which is no whole number"):
        from_slurm({**RANK_5_OF_7, name: "x"})


def test_a_node_that_the_layout_does_not_have_is_refused():
    with pytest.raises(ConfigError, match="SLURM_NODEID is 4"):
        from_slurm({**RANK_5_OF_7, "SLURM_NODEID": "4"})


@pytest.mark.parametrize(
    ("layout", "counts"),
    [("1", [1]), ("8(x2)", [8, 8]), ("2(x3),1", [2, 2, 2, 1]), ("3,4,3(x2)", [3, 4, 3, 3])],
)
def test_slurms_short_form_of_counts_is_read(layout, counts):
    assert ranks_of_nodes(layout, "SLURM_TASKS_PER_NODE") == counts


@pytest.mark.parametrize("layout", ["x", "2(x", "2(3)", "2,,1"])
def test_another_form_is_refused(layout):
    with pytest.raises(ConfigError, match=re.escape(f"SLURM_TASKS_PER_NODE is '{layout}'")):
        ranks_of_nodes(layout, "SLURM_TASKS_PER_NODE")


def test_a_rank_on_this_machine_meets_the_others_at_home():
    class Task:
        global_rank, local_rank, num_tasks = 1, 1, 2

    assert from_local(Task(), 15000) == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "15000",
    }
