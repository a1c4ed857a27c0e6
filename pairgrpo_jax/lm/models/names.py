"""Where a parameter lives in a checkpoint, and how to take it out and put it back."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint, or one of `parts` equal blocks of its output columns.

    `{}` in the name stands for the layer. `transpose` is for torch's `[out, in]` weights.
    """

    name: str
    transpose: bool = False
    part: int = 0
    parts: int = 1

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape the checkpoint must hold for one layer's parameter of this shape."""
        full = (*shape[:-1], shape[-1] * self.parts)
        return full[::-1] if self.transpose else full

    def stored_index(self, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Returns the block of the stored tensor that holds this block of the parameter."""
        start = self.part * shape[-1]
        last = slice(index[-1].start + start, index[-1].stop + start)
        full = (*index[:-1], last)
        return full[::-1] if self.transpose else full

    def take_block(self, stored: np.ndarray) -> np.ndarray:
        """Returns a block of the parameter from the block read at `stored_index`."""
        return stored.T if self.transpose else stored

    def put(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Returns the stored tensor made of all its blocks, in order."""
        whole = np.concatenate(blocks, axis=-1)
        return np.ascontiguousarray(whole.T if self.transpose else whole)
