"""python -m pipeline.export: a checkpoint as a folder that others can use without this project."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.errors import ConfigError
from pipeline.export.folder import check_free, write_folder

_EPILOG: Final = """\
In the folder: the encoder and the whole model as safetensors, config.json (bands, units, statistics, settings, data
fingerprint), a model card, and fusmae_inference.py, which needs torch and safetensors alone:

    model = fusmae_inference.load("DIR")
    features = model({"s1": s1, "s2": s2})

Exit code: 0 written, 1 a checkpoint or data set is missing or damaged, 2 wrong usage."""


def main(argv: list[str] | None = None) -> int:
    """Write a checkpoint's model as a folder that others can use without this project."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.export",
        description=main.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CHECKPOINT", help="run folder, or its checkpoints/step-*")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make; it must not exist")
    parser.add_argument("--timm", action="store_true", help="each sensor's encoder under the names of timm's ViT too")
    parser.add_argument(
        "--onnx",
        nargs="*",
        metavar="SENSORS",
        help="graphs for onnxruntime too; of all sensors, or of those named, such as: --onnx s1+s2 s2",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="where the training data set lies now, if it was moved; only its manifest is read",
    )
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    out = Path(arguments.out)
    check_free(out)
    if arguments.onnx is not None:
        _check_onnx()

    from pipeline.export.source import open_source

    source = open_source(arguments.run, arguments.data)
    names = source.loaded.config.modality_names
    sets = [] if arguments.onnx is None else [_sensors(given, names) for given in arguments.onnx or ["+".join(names)]]
    write_folder(source, out, timm=arguments.timm, onnx=sets)
    print(f"written: {out} (step {source.loaded.step})")
    return 0


def _check_onnx() -> None:
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--onnx needs the package {package}; pip install onnx onnxscript")


def _sensors(given: str, names: Sequence[str]) -> tuple[str, ...]:
    asked = given.split("+")
    if unknown := [name for name in asked if name not in names]:
        raise ConfigError(f"--onnx {given}: there is no sensor '{unknown[0]}', only {', '.join(names)}")
    return tuple(name for name in names if name in asked)
