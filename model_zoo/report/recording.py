"""What a bundle's exits gave on a set of images, kept in a file, so that a report can be written again at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.bundle.npz import read_npz
from distree.errors import RemoteProtocolError
from distree.regular_files import open_regular
from model_zoo.data.examples import MAX_BYTES
from model_zoo.errors import DataError
from model_zoo.evaluation import Collector, ExitLogits

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recording:
    """Logits of every exit for each set of missing branches, and the embeddings of a bundle whose stages are all wide.

    logits: by the branches missing, float64 (inputs, exits, classes). embeddings: per exit and branch, float64
    (inputs, values), the same whoever is missing.
    """

    labels: npt.NDArray[np.int64]
    logits: dict[tuple[int, ...], Floats]
    embeddings: tuple[tuple[Floats, ...], ...]

    @classmethod
    def of(cls, collector: Collector, masks: Iterable[tuple[int, ...]]) -> Recording:
        """Collect with nobody missing, and with each of these sets of branches missing."""
        whole = collector.collect()
        embeddings = tuple(tuple(one for one in of_exit if one is not None) for of_exit in whole.embeddings)
        logits = {(): whole.logits} | {missing: collector.collect(missing).logits for missing in masks}
        return cls(whole.labels, logits, embeddings)

    @property
    def masks(self) -> tuple[tuple[int, ...], ...]:
        """The sets of missing branches, without the empty one."""
        return tuple(missing for missing in self.logits if missing)

    def collect(self, missing: tuple[int, ...] = ()) -> ExitLogits:
        """Return what `Collector.collect` returned for one of the sets."""
        known = tuple(
            tuple(None if b in missing else one for b, one in enumerate(of_exit)) for of_exit in self.embeddings
        )
        return ExitLogits(logits=self.logits[missing], labels=self.labels, missing=missing, embeddings=known)

    def save(self, path: Path) -> None:
        """Write it into an .npz file."""
        arrays: dict[str, npt.NDArray[Any]] = {"labels": self.labels}
        arrays |= {"_".join(["logits", *map(str, missing)]): logits for missing, logits in self.logits.items()}
        arrays |= {
            f"embedding_{k}_{b}": one for k, of_exit in enumerate(self.embeddings) for b, one in enumerate(of_exit)
        }
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read it back; DataError for a file that is none."""
        try:
            with open_regular(path) as file:
                arrays = read_npz(file, MAX_BYTES)
            labels = arrays.pop("labels")
            logits = {_numbers(name): arrays[name] for name in arrays if name.startswith("logits")}
            embeddings = {_numbers(name): arrays[name] for name in arrays if name.startswith("embedding")}
        except (OSError, KeyError, ValueError, RemoteProtocolError) as error:
            raise DataError(f"{path}: not a recording of a bundle's exits ({error})", "delete it") from error
        exits = sorted({at[0] for at in embeddings})
        return cls(
            labels, logits, tuple(tuple(embeddings[at] for at in sorted(embeddings) if at[0] == k) for k in exits)
        )


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("_")[1:])
