"""TorchScript archives of any tensors."""

import pytest
import torch


class Numbers(torch.nn.Module):
    """A tree of modules with the names of a state dict, and the sizes that OpenAI's archives hold besides."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        inner: dict[str, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = value
            elif value.is_floating_point():
                self.register_parameter(first, torch.nn.Parameter(value))
            else:
                self.register_buffer(first, value)
        for name, value in inner.items():
            self.add_module(name, Numbers(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def scripted(path, tensors):
    with pytest.warns(FutureWarning):
        torch.jit.script(Numbers(tensors)).save(path)
    return path
