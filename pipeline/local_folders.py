"""`python -m pipeline.local_folders CONFIG.yaml [key.sub=value ...]`: the folders that a run uses, one a line.

What a container must see of the machine. URLs are none, and what is not there yet is not made.
"""

import argparse
from pathlib import Path

from pipeline.command import run_command
from pipeline.config import load_settings
from pipeline.settings import Settings
from sharding.dataset import split_version


def local_folders(settings: Settings) -> list[str]:
    """Absolute paths, without repeats: run folder, data, cache, checkpoints, first weights."""
    data, checkpoint = settings.data, settings.checkpoint
    sets = [split_version(url)[0] for url in (data.url, *(member.url for member in data.mixture))]
    named = [settings.run.dir, *sets, data.cache_dir]
    named += [checkpoint.url, checkpoint.staging, settings.train.init_weights]
    paths = [name.removeprefix("file://") for name in named if name]
    return list(dict.fromkeys(str(Path(path).absolute()) for path in paths if "://" not in path))


def main(argv: list[str] | None = None) -> int:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.local_folders", description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", metavar="key.sub=value", nargs="*")
    arguments = parser.parse_args(argv)
    print(*local_folders(load_settings(arguments.config, arguments.overrides)), sep="\n")
    return 0


if __name__ == "__main__":
    run_command(main)
