"""One run, one owner, one set of settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import dump_settings
from pipeline.data_settings import DataSettings
from pipeline.errors import ConfigError, StorageError
from pipeline.run_folder import CONFIG_NAME, check_resumable, own
from pipeline.settings import RunSettings, Settings, TrainSettings


def _begun(tmp_path: Path) -> Settings:
    settings = Settings(
        data=DataSettings(url="here"),
        train=TrainSettings(steps=10),
        run=RunSettings(dir=str(tmp_path / "run")),
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_NAME).write_text(dump_settings(settings))
    return settings


def test_fresh_folder_and_equal_settings_are_fine(tmp_path: Path) -> None:
    settings = _begun(tmp_path)
    assert check_resumable(settings) == []
    assert check_resumable(replace(settings, run=RunSettings(dir=str(tmp_path / "new")))) == []


def test_changed_model_is_refused_with_both_values(tmp_path: Path) -> None:
    settings = replace(_begun(tmp_path), model={"width": 96})
    with pytest.raises(ConfigError, match=r"model\.width \(None there, 96 now\)"):
        check_resumable(settings)


def test_changed_seed_is_refused_and_changed_steps_are_told(tmp_path: Path) -> None:
    settings = _begun(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.seed"):
        check_resumable(replace(settings, train=TrainSettings(steps=10, seed=1)))
    assert check_resumable(replace(settings, train=TrainSettings(steps=20))) == ["train.steps"]


def test_url_as_run_folder_is_refused(tmp_path: Path) -> None:
    settings = replace(_begun(tmp_path), run=RunSettings(dir="s3://bucket/run"))
    with pytest.raises(ConfigError, match=r"run\.dir=s3://bucket/run must be a folder"):
        check_resumable(settings)


def test_second_owner_is_refused_until_the_first_leaves(tmp_path: Path) -> None:
    release = own(tmp_path)
    with pytest.raises(StorageError, match="in use by the process with rank 0"):
        own(tmp_path)
    release()
    own(tmp_path)()


def test_changed_groups_are_refused_because_the_state_would_win(tmp_path: Path) -> None:
    settings = replace(_begun(tmp_path), data=DataSettings(url="here", groups=4))
    with pytest.raises(ConfigError, match=r"data\.groups \(0 there, 4 now\)"):
        check_resumable(settings)
