"""LoRA adapters (Hu et al. 2021) on the linear layers of a model's trunk, made by `peft`, and networks that share one
copy of the weights below them.

No adapter is ever switched on or off. A network with an adapter of its own is a tree of modules of its own, in which
the frozen weights are the same tensors as the base model's (`view`): so what a network computes hangs on nothing that
another one did before, and two of them can be in one backward pass.
"""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cai.errors import ModelError
from cai.records import write_json

__all__ = [
    "add_adapter",
    "check_adapter",
    "has_adapter",
    "is_linear",
    "load_adapter",
    "load_trained",
    "merge",
    "save_adapter",
    "trained_parameters",
    "trained_state",
    "view",
    "whole_weight",
]

_CONFIG: Final = "adapter_config.json"  # both names are peft's, which can load the folder
_WEIGHTS: Final = "adapter_model.safetensors"


def add_adapter(model: PreTrainedModel, *, rank: int, alpha: float, seed: int, head: nn.Module | None = None) -> None:
    """Put an adapter beside every linear layer of the trunk, drawn from `seed`, in float32; freeze all other weights
    but those of `head`. At first it changes nothing: its second factor is 0. A model in half precision must be called
    under autocast from now on.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trunk = model.base_model
    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),  # a factor; nothing in peft needs it to be whole
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in trunk.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, trunk)
        except ValueError as error:
            raise ModelError(f"{type(model).__name__}: no place for adapters: {str(error).splitlines()[0]}") from None
    layers: list[Any] = [module for module in trunk.modules() if has_adapter(module)]
    if len(list(trained_parameters(model))) != 2 * len(layers):
        raise ModelError(f"{type(model).__name__}: adapters cannot be merged into all of its layers; is it quantised?")
    for parameter in trained_parameters(model):
        parameter.data = parameter.data.float()
    for layer in layers:  # peft would copy what goes in, for every layer anew; autocast sees to the same
        layer.cast_input_dtype_enabled = False
    if head is not None:
        head.requires_grad_(True)


def view(model: PreTrainedModel) -> PreTrainedModel:
    """A tree of modules of its own over the same tensors as `model`."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, tensors)  # what is in the memo is not copied


def merge(model: PreTrainedModel) -> None:
    """Add the adapter to the weights, in place, and leave a plain model. Not for a model whose weights are shared."""
    for name, module in list(model.named_modules()):
        if has_adapter(module):
            module.merge()
            model.set_submodule(name, module.base_layer)
    del model.base_model.peft_config


# --- what is trained --------------------------------------------------------------------------------------------------


def trained_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are not frozen: of a model without adapters, all."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without what is frozen."""
    frozen = _frozen(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put back what `trained_state` gave. Raises ModelError when it is of another model."""
    found = model.load_state_dict(state, strict=False)
    wrong = [*found.unexpected_keys, *(name for name in found.missing_keys if name not in _frozen(model))]
    if wrong:
        raise ModelError(f"these weights are of another model or rank: {wrong[0]!r} is only in one of them")


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


# --- adapters on disk -------------------------------------------------------------------------------------------------


def save_adapter(model: PreTrainedModel, folder: Path, *, base: str) -> None:
    """Write adapter and head such that `peft` can load them too; `base` is the digest of the model below them."""
    layers = [(name, module) for name, module in model.named_modules() if has_adapter(module)]
    _, first = layers[0]
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_key(name): tensor.contiguous() for name, tensor in trained_state(model).items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"base": base})  # of more keys the order would be random
    facts = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "r": first.r["default"],
        "lora_alpha": first.lora_alpha["default"],
        "target_modules": sorted({name.rpartition(".")[2] for name, _ in layers}),
        "fan_in_fan_out": first.fan_in_fan_out,
        "modules_to_save": ["score"],
    }
    write_json(folder / _CONFIG, facts)


def check_adapter(folder: Path, *, base: str) -> tuple[int, float]:
    """Rank and alpha of the adapter in `folder`. Raises ModelError when there is none, or it is for another model than
    the one with the digest `base`.
    """
    if not (folder / _CONFIG).is_file():
        raise ModelError(
            f"{folder}: no adapter here; networks that share one base need a reward model that was trained as one: "
            "set reward.lora_rank, or rl.lora_rank=0"
        )
    try:
        facts = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        rank, alpha = int(facts["r"]), float(facts["lora_alpha"])
        with safe_open(folder / _WEIGHTS, "pt") as file:
            found = (file.metadata() or {}).get("base")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot read the adapter: {' '.join(str(error).split())}") from None
    if found != base:
        raise ModelError(f"{folder}: this adapter was trained on another model than the one that it would go on")
    return rank, alpha


def load_adapter(model: PreTrainedModel, folder: Path, *, base: str, head: nn.Module) -> None:
    """`add_adapter`, with the weights that `save_adapter` wrote, those of `head` among them."""
    rank, alpha = check_adapter(folder, base=base)
    add_adapter(model, rank=rank, alpha=alpha, seed=0, head=head)
    with safe_open(folder / _WEIGHTS, "pt") as file:
        known = set(file.keys())
        names = trained_state(model)
        missing = [name for name in names if _key(name) not in known]
        if missing or len(known) > len(names):
            raise ModelError(f"{folder}: the adapter is of another architecture; {missing or sorted(known)!r:.80}")
        load_trained(model, {name: file.get_tensor(_key(name)) for name in names})


def _key(name: str) -> str:
    """How peft calls in a file what is called `name` in the model."""
    return f"base_model.model.{name.replace('.default.', '.')}"


# --- layers -----------------------------------------------------------------------------------------------------------


def is_linear(module: nn.Module) -> bool:
    """Whether `module` maps every row alone by one matrix: a linear layer, with or without an adapter beside it."""
    return type(module) is nn.Linear or (has_adapter(module) and type(module.base_layer) is nn.Linear)


def whole_weight(module: nn.Module) -> Tensor:
    """The matrix (out, in) of a module that `is_linear` says yes to, adapter included."""
    layer: Any = module
    weight: Tensor = layer.base_layer.weight + layer.get_delta_weight("default") if has_adapter(layer) else layer.weight
    return weight


def has_adapter(module: Any) -> bool:
    """Whether `module` is a linear layer with an adapter beside it."""
    lora = sys.modules.get("peft.tuners.lora.layer")  # not imported: then there are no such modules
    return lora is not None and type(module) is lora.Linear
