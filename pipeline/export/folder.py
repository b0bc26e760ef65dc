"""The exported folder: what is in it, and that it appears whole or not at all.

model.safetensors     the encoder alone        full/model.safetensors  the whole model, decoders too
config.json           bands, units, statistics, settings, fingerprints
fusmae_inference.py   the encoder in one file  fusmae_terratorch.py, fusmae_torchgeo.py: on top of it
README.md             the model card           timm/, model.onnx: if asked for

The same checkpoint gives the same bytes.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError
from pipeline.export.card import write_card

if TYPE_CHECKING:
    from pipeline.export.source import Source

CONFIG_NAME: Final = "config.json"
WEIGHTS_NAME: Final = "model.safetensors"
COPIED: Final = ("fusmae_inference.py", "fusmae_terratorch.py", "fusmae_torchgeo.py")


def check_free(out: Path) -> None:
    """ConfigError when there is something at `out`."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out} exists; name another place")


def write_folder(source: "Source", out: Path, *, timm: bool = False, onnx: Sequence[Sequence[str]] = ()) -> None:
    """Write all of it to `out`, which must not exist.

    Args:
        source: what is exported.
        out: the folder to make.
        timm: with `timm/`, each sensor's encoder under timm's names.
        onnx: the sets of sensors of which a graph is written; see `pipeline.export.onnx_file`.
    """
    check_free(out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by an export that was killed
    try:
        _fill(source, partial, timm=timm, onnx=onnx)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(out)


def _fill(source: "Source", partial: Path, *, timm: bool, onnx: Sequence[Sequence[str]]) -> None:
    (partial / "full").mkdir(parents=True)
    save_weights(source.encoder_weights, partial / WEIGHTS_NAME)
    save_weights(source.loaded.weights, partial / "full" / WEIGHTS_NAME)
    write_json(source.config, partial / CONFIG_NAME)
    for name in COPIED:
        shutil.copyfile(Path(__file__).with_name(name), partial / name)
    if timm:
        from pipeline.export.timm_names import write_timm

        write_timm(source, partial / "timm")
    graphs = []
    if onnx:
        from pipeline.export.onnx_file import write_onnx

        graphs = [write_onnx(source, sensors, partial) for sensors in onnx]
    write_card(source, partial / "README.md", timm=timm, graphs=graphs)


def load_exported(folder: Path) -> Any:
    """The whole `fusmae.FusMAE` of an exported folder, in evaluation mode; its decoders too."""
    from pydantic import TypeAdapter
    from safetensors.torch import load_file

    from fusmae import FusMAE, FusMAEConfig

    config = json.loads((folder / CONFIG_NAME).read_text())["model"]
    model = FusMAE(TypeAdapter(FusMAEConfig).validate_python(config))
    model.load_state_dict(load_file(folder / "full" / WEIGHTS_NAME))
    return model.eval()


def save_weights(weights: dict[str, Any], path: Path) -> None:
    """As safetensors; with one entry of metadata, because the order of several changes from run to run."""
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in weights.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors 0.8 makes files that their owner alone can read


def write_json(content: Any, path: Path) -> None:
    """Indented, in the order given."""
    path.write_text(json.dumps(content, indent=1) + "\n")
