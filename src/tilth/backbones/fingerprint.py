"""The identity of a network: for caches of what a frozen model says."""

import json

import torch
import xxhash
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """32 hexadecimal digits of its class, its configuration and every weight, to the bit."""
    config = getattr(model, "config", None)
    made = json.dumps(config.to_dict(), sort_keys=True, default=str) if config is not None else repr(model)
    content = xxhash.xxh3_128(f"{type(model).__qualname__} {made}".encode())
    for name, tensor in model.state_dict().items():
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()
