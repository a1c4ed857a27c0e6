"""Where a parameter lives in a checkpoint, and how to take it out and put it back."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of a checkpoint, or the block of its output columns that begins at `start`.

    `{}` in the name stands for the layer. `transpose` is for torch's `[out, in]` weights.
    `total` is the number of output columns of all blocks; 0 where the tensor is one parameter.
    """

    name: str
    transpose: bool = False
    start: int = 0
    total: int = 0

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape the checkpoint must hold for one layer's parameter of this shape."""
        full = (*shape[:-1], self.total or shape[-1])
        return full[::-1] if self.transpose else full

    def stored_index(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        """Returns the block of the stored tensor that holds this block of the parameter."""
        last = slice(index[-1].start + self.start, index[-1].stop + self.start)
        full = (*index[:-1], last)
        return full[::-1] if self.transpose else full

    def take_block(self, stored: np.ndarray) -> np.ndarray:
        """Returns a block of the parameter from the block read at `stored_index`."""
        return stored.T if self.transpose else stored

    def put(self, blocks: list[np.ndarray]) -> np.ndarray:
        """Returns the stored tensor made of all its blocks, in order."""
        whole = np.concatenate(blocks, axis=-1)
        return np.ascontiguousarray(whole.T if self.transpose else whole)
