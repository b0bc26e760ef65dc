"""What Lightning and Accelerate do with a StreamDataset: seen from inside a process; the examples run them whole."""

import contextlib
import logging
from itertools import islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from pipeline.stream import Batch, Stream, StreamConfig
from pipeline.stream.torch_dataset import StreamDataset
from tests.unit.pipeline.small_shards import Made, assert_equal, take

EPOCH = 4
"""Global batches of the epochs here."""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def open_dataset(made: Made) -> StreamDataset:
    return StreamDataset(StreamConfig(url=made.url, global_batch=12), epoch_batches=EPOCH)


def from_stream(made: Made, num: int) -> list[Batch]:
    with Stream(StreamConfig(url=made.url, global_batch=12)) as stream:
        return take(stream, num)


def assert_all_equal(got: list[Batch], expected: list[Batch]):
    assert [batch.step for batch in got] == [batch.step for batch in expected]
    for a, b in zip(got, expected, strict=True):
        assert_equal(a, b)


# Accelerate


@pytest.fixture
def accelerator(tmp_path):
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.state import AcceleratorState, GradientState

    made = []

    def make(**options) -> Accelerator:
        for state in (AcceleratorState, GradientState):
            state._reset_state()  # it is the process's, and each test is a process of its own
        made.append(Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options)))
        return made[-1]

    yield make
    for state in (AcceleratorState, GradientState):
        state._reset_state()


@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_accelerate_saves_and_loads_a_dataset_that_is_registered(made, tmp_path, accelerator, killed_after):
    with open_dataset(made) as dataset:
        accelerate = accelerator()
        accelerate.register_for_checkpointing(dataset)
        got = list(islice(dataset, killed_after)) + list(islice(dataset, max(killed_after - EPOCH, 0)))
        accelerate.save_state(tmp_path / "saved")
    with open_dataset(made) as dataset:
        accelerate = accelerator()
        accelerate.register_for_checkpointing(dataset)
        accelerate.load_state(tmp_path / "saved")
        for _ in range(dataset.epoch, 2):
            got += dataset
    assert_all_equal(got, from_stream(made, 2 * EPOCH))


def test_accelerate_leaves_a_dataset_that_is_prepared_as_it_is(made, accelerator):
    with open_dataset(made) as dataset:
        assert accelerator().prepare(dataset) is dataset


def test_accelerate_moves_a_batch_as_a_whole(made):
    from accelerate.utils import send_to_device

    (batch,) = from_stream(made, 1)
    moved = send_to_device(batch, torch.device("cpu"), non_blocking=True)
    assert isinstance(moved, Batch)
    assert_equal(moved, batch)


def test_a_dataloader_that_accelerate_prepared_for_one_process_yields_the_same_batches(made, accelerator):
    with open_dataset(made) as dataset:
        loader = accelerator(dispatch_batches=False).prepare(DataLoader(dataset, batch_size=None))
        got = [batch for _ in range(3) for batch in loader]  # it calls set_epoch and reads one batch in advance
    assert_all_equal(got, from_stream(made, 3 * EPOCH))


def test_the_state_after_the_last_batch_is_right_though_accelerate_reads_in_advance(made, accelerator):
    with open_dataset(made) as dataset:
        loader = accelerator(dispatch_batches=False).prepare(DataLoader(dataset, batch_size=None))
        got = list(islice(loader, 2))
        ahead, behind = dataset.state_dict(), dataset.state_after(got[-1])
    assert ahead["samples_seen"] == behind["samples_seen"] + 12
    with open_dataset(made) as dataset:
        dataset.load_state_dict(behind)
        got += accelerator(dispatch_batches=False).prepare(DataLoader(dataset, batch_size=None))
    assert_all_equal(got, from_stream(made, EPOCH))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11.0 with torch 2.13
@pytest.mark.parametrize("killed_after", [1, 3])
def test_accelerates_stateful_dataloader_resumes_within_an_epoch(made, accelerator, tmp_path, killed_after):
    with open_dataset(made) as dataset:
        accelerate = accelerator(dispatch_batches=False, use_stateful_dataloader=True)
        loader = accelerate.prepare(DataLoader(dataset, batch_size=None))
        got = list(islice(loader, killed_after))
        accelerate.save_state(tmp_path / "saved")
    with open_dataset(made) as dataset:
        accelerate = accelerator(dispatch_batches=False, use_stateful_dataloader=True)
        loader = accelerate.prepare(DataLoader(dataset, batch_size=None))
        accelerate.load_state(tmp_path / "saved")
        got += loader
    assert_all_equal(got, from_stream(made, EPOCH))


@pytest.mark.parametrize("dispatch_batches", [True, False])
def test_accelerate_cannot_share_the_batches_of_a_rank_among_the_ranks_once_more(made, accelerator, dispatch_batches):
    from accelerate.data_loader import prepare_data_loader

    with open_dataset(made) as dataset:
        accelerator()
        loader = prepare_data_loader(
            DataLoader(dataset, batch_size=None),
            num_processes=2,
            process_index=0,
            put_on_device=True,
            device=torch.device("cpu"),
            dispatch_batches=dispatch_batches,
        )
        with pytest.raises(TypeError):
            list(loader)


# Lightning


def with_lightning(test):
    for warning in (
        ".*LeafSpec:FutureWarning",  # pytorch-lightning 2.6.6 with torch 2.13
        "'set_vital' is deprecated:UserWarning",  # torchdata 0.11.0 with torch 2.13
        "Checkpoint directory .* is not empty:UserWarning",  # a resumed run goes on in its folder
        "Your `IterableDataset` has `__len__` defined",  # and no workers, which it warns of
    ):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


class Killed(Exception):
    pass


@pytest.fixture
def lightning(tmp_path):
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self, kill_after: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))
            self.kill_after = kill_after
            self.seen: list[Batch] = []

        def training_step(self, batch: Batch, number: int) -> torch.Tensor:
            if len(self.seen) == self.kill_after:
                raise Killed
            self.seen.append(batch)
            return self.weight * 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    def fit(loader, kill_after: int = -1, resume: bool = False, **options) -> list[Batch]:
        """The batches of a run that saves after each step into `tmp_path / "last.ckpt"`."""
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=[ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        module = Module(kill_after)
        with contextlib.suppress(Killed):
            trainer.fit(module, train_dataloaders=loader, ckpt_path=tmp_path / "last.ckpt" if resume else None)
        return module.seen

    return fit


@with_lightning
@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_lightning_resumes_a_dataset_that_is_its_loader(made, lightning, killed_after):
    with open_dataset(made) as dataset:
        got = lightning(dataset, killed_after)
    with open_dataset(made) as dataset:
        got += lightning(dataset, resume=True)
    assert_all_equal(got, from_stream(made, 2 * EPOCH))


@with_lightning
def test_without_the_datasets_state_lightning_begins_again(made, lightning, tmp_path):
    with open_dataset(made) as dataset:
        got = lightning(dataset, 1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    torch.save(saved, tmp_path / "last.ckpt")
    with open_dataset(made) as dataset:
        got += lightning(dataset, resume=True)
    assert got[1].step == 0


@with_lightning
def test_lightning_in_half_precision_refuses_stored_numbers_instead_of_rounding_them(made, lightning):
    with open_dataset(made) as dataset, pytest.raises(ValueError, match="frozen dataclass"):
        lightning(dataset, precision="bf16-true")


@with_lightning
def test_lightning_in_half_precision_takes_and_resumes_what_a_stateful_dataloader_makes(made, lightning):
    def loader(dataset):
        return StatefulDataLoader(dataset, batch_size=None, collate_fn=lambda batch: {"id": batch.sample_id})

    with open_dataset(made) as dataset:
        got = lightning(loader(dataset), 3, precision="bf16-true")
    with open_dataset(made) as dataset:
        got += lightning(loader(dataset), resume=True, precision="bf16-true")
    assert [made["id"].tolist() for made in got] == [b.sample_id.tolist() for b in from_stream(made, 2 * EPOCH)]
