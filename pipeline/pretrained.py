"""Initial weights from a ViT's file: read without running anything in it, put into the model, shared with all ranks."""

import argparse
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, DataError
from sharding.store import Store

if TYPE_CHECKING:
    from fusmae.pretrained import LoadReport

_WRAPPERS = ("model", "state_dict", "module")
"""Under what training scripts put the weights in their checkpoints."""
_MAGIC = (b"PK\x03\x04", b"\x80")
"""How files of torch.save begin: a zip, or a pickle before torch 1.6."""


def read_state_dict(path_or_url: str) -> dict[str, Any]:
    """The tensors of a .safetensors file or of one written by torch.save, by name, on the CPU.

    Weights under the key model, state_dict or module are taken out of it, and prefixes `module.` and `encoder.` are
    cut off. What would run code when it is read is refused.

    Raises:
        ConfigError: no such file, or it holds no weights.
        StorageError: the store does not give it.
    """
    found = _parse(_read(path_or_url), path_or_url)
    return _without_prefixes(_tensors(found, path_or_url), path_or_url)


def read_nested(path_or_url: str) -> dict[str, Any]:
    """All tensors of such a file, on the CPU; a nested name's parts are joined by points, `teacher.blocks.0`.

    Nothing is taken out and no prefix is cut off. Raises as `read_state_dict`.
    """
    tensors = dict(_flattened(_parse(_read(path_or_url), path_or_url), ()))
    if not tensors:
        raise ConfigError(f"{path_or_url} holds no tensors by name; give the published file of weights")
    return tensors


def start_from(model: Any, path_or_url: str, say: Callable[[str], None]) -> "LoadReport":
    """Start `model` from the ViT in a file, and say what was loaded and what was not.

    Raises ConfigError naming the file when it does not fit; the model is as it was then.
    """
    from fusmae.pretrained import load_vit

    state_dict = read_state_dict(path_or_url)
    try:
        report = load_vit(model, state_dict)
    except ValueError as error:
        raise ConfigError(f"{path_or_url} cannot start this model: {error}") from error
    say(f"initial weights from {path_or_url}")
    for line in report.describe():
        say(line)
    return report


def start_all_from(model: Any, path_or_url: str, is_first: bool, group: Any) -> "LoadReport | None":
    """`start_from` on rank 0, which alone reads the file and gets the report; the others get its weights. A collective.

    `group` is the CPU-side one. Whole parameters are sent: call it before an engine cuts them into pieces.
    """
    import torch
    import torch.distributed as dist

    report = start_from(model, path_or_url, lambda line: print(line, flush=True)) if is_first else None
    with torch.no_grad():
        for parameter in model.parameters():
            weight = parameter.detach().cpu().contiguous()
            dist.broadcast(weight, src=0, group=group)
            parameter.copy_(weight)
    return report


def _read(path_or_url: str) -> bytes:
    if "://" not in path_or_url:
        try:
            return Path(path_or_url).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the weights {path_or_url}: {error.strerror}; give the path of a .pth, .pt or .safetensors"
            ) from error
    folder, _, name = path_or_url.rpartition("/")
    try:
        return Store(folder).read(name)
    except DataError as error:
        raise ConfigError(f"cannot read the weights {path_or_url}: there is no such file") from error


def _parse(content: bytes, name: str) -> Any:
    return _from_safetensors(content, name) if name.endswith(".safetensors") else _from_torch(content, name)


def _flattened(found: Any, parts: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(found, torch.Tensor):
        yield ".".join(parts), found.detach()
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _flattened(value, (*parts, str(key)))


def _from_safetensors(content: bytes, name: str) -> Any:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ConfigError(f"{name} is no whole safetensors file: {error}; fetch it again") from error


def _from_torch(content: bytes, name: str) -> Any:
    import torch

    if not content.startswith(_MAGIC):
        raise ConfigError(f"{name} is no file of weights; give one of torch.save (.pth, .pt) or a .safetensors")
    try:
        # MAE's checkpoints carry the command's arguments; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails with whatever its bytes happen to ask for
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ConfigError(
                f"{name} holds more than tensors ({found[1]}), and reading that could run code; save the weights alone:"
                " torch.save(model.state_dict(), path)"
            ) from error
        raise ConfigError(f"{name} is no whole file of torch.save; fetch it again") from error


def _tensors(found: Any, name: str) -> dict[str, Any]:
    import torch

    if not isinstance(found, dict):
        raise ConfigError(f"{name} holds a {type(found).__name__}, no weights by name; save model.state_dict()")
    while wrapper := next((key for key in _WRAPPERS if isinstance(found.get(key), dict)), None):
        found = found[wrapper]
    tensors = {str(key): value.detach() for key, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(found)[:5])) or "none"
        raise ConfigError(f"{name} holds no tensors; its keys are {keys}; save model.state_dict()")
    return tensors


def _without_prefixes(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    """Names without what DistributedDataParallel and autoencoders put before those of the ViT."""
    for prefix in ("module.", "encoder."):
        if not any(key.startswith(f"{prefix}blocks.") for key in tensors) and prefix != "module.":
            continue
        renamed: dict[str, Any] = {}
        for key, value in tensors.items():
            short = key.removeprefix(prefix)
            if short in renamed:
                raise ConfigError(f"{name} holds '{short}' twice, with and without '{prefix}'; save the ViT alone")
            renamed[short] = value
        tensors = renamed
    return tensors
