"""What a network costs: parameters, and MACs (FLOPs/2) of its convolutions and linear layers.

fvcore counts them from a trace, torch's own counter while the network runs: two independent implementations. Where they
differ, the record says so.
"""

from __future__ import annotations

import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from afpkd.models import num_parameters
from afpkd.record import Json
from export.inference import LogitsOnly, logits_only

with warnings.catch_warnings():
    # fvcore decorates its own helpers with torch.jit.script, which torch >= 2.13 calls deprecated on import.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

_FVCORE_OPS = ("conv", "linear")
_TORCH_OPS = ("convolution", "mm", "addmm")  # F.linear becomes mm or addmm below autograd


def macs_of(model: nn.Module, example: Tensor) -> Json:
    """Count `model` on the first image of `example` (float32 N, C, H, W); `model` stays as it is.

    Keys: num_params; macs, the headline, and fvcore, the same; torch, the cross-check; agree; note, the difference or
    None; by_layer {layer: MACs}; excluded_ops {operator: fvcore's count} for what is neither a convolution nor a linear
    layer; unsupported_ops {operator: occurrences} for what fvcore cannot count.
    """
    network, image = logits_only(model), example[:1].detach().cpu()
    analysis = FlopCountAnalysis(network, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    operators: Counter[str] = analysis.by_operator()
    counted, checked = _conv_and_linear(operators), _torch_macs(network, image)
    agree = counted == checked
    return {
        "num_params": num_parameters(network),
        "macs": counted,
        "fvcore": counted,
        "torch": checked,
        "agree": agree,
        "note": None if agree else f"fvcore counts {counted:,} MACs, torch's flop counter / 2 gives {checked:,}",
        "by_layer": _by_layer(analysis.by_module_and_operator()),
        "excluded_ops": {name: int(macs) for name, macs in operators.items() if name not in _FVCORE_OPS},
        "unsupported_ops": dict(analysis.unsupported_ops()),
    }


def _conv_and_linear(operators: Counter[str]) -> int:
    return sum(int(operators[name]) for name in _FVCORE_OPS)


def _torch_macs(network: LogitsOnly, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    flops = counter.get_flop_counts()["Global"]
    total: int = sum(count for operator, count in flops.items() if operator.__name__ in _TORCH_OPS)
    return total // 2


def _by_layer(modules: dict[str, Counter[str]]) -> dict[str, int]:
    """MACs that each module does itself, children left out ("": the network's own forward); they sum to the whole."""
    totals = {name: _conv_and_linear(operators) for name, operators in modules.items()}
    own = Counter(totals)
    for name, total in totals.items():
        if name:
            own[name.rpartition(".")[0]] -= total
    return {name.removeprefix("model").removeprefix("."): macs for name, macs in own.items() if macs}
