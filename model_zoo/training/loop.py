"""The training loop: epochs of stochastic gradient descent, resumable after every one. Only `build` imports this.

Everything random comes from the seed and the number of the epoch, so a run that was cut off and resumed ends
with the same weights as one that was not.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from model_zoo.errors import DataError
from model_zoo.recipes import Schedule
from model_zoo.training.machine import processor

Loss = Callable[[Any, Any, int], Any]
"""Takes indices (n,) of training images, a generator for what is random, and the epoch; gives a scalar to descend."""

_SHOW_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training came to. accuracy: of each exit on the validation images, 0..1, at the kept epoch."""

    epochs: int
    kept_epoch: int
    seed: int
    seconds: float
    torch_version: str
    accuracy: tuple[float, ...]


@dataclass(slots=True)
class _State:
    """What a checkpoint holds."""

    epoch: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_accuracy: tuple[float, ...] = ()
    best_weights: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Loop:
    """Trains `network` on `count` images and keeps the epoch with the best mean accuracy on validation.

    loss and validate: what to descend, and the accuracy of each exit, each 0..1. checkpoint: a file; one of the
    same `identity` found there is resumed, one of another refused. progress: is given a line after every epoch.
    step: is told (epoch, steps done, steps in all), at most once a second.
    """

    network: Any
    schedule: Schedule
    count: int
    loss: Loss
    validate: Callable[[], tuple[float, ...]]
    checkpoint: Path
    identity: dict[str, Any]
    progress: Callable[[str], None] = lambda _: None
    step: Callable[[int, int, int], None] = lambda *_: None
    _optimiser: Any = None
    _rates: Any = None

    def run(self) -> TrainingReport:
        """Train what is left to train, put the best epoch's weights into `network` and report."""
        torch.use_deterministic_algorithms(True)
        # Nothing here reads memory before it is written; filling it first costs a sixth of the time.
        torch.utils.deterministic.fill_uninitialized_memory = False
        self._build_optimiser()
        state = self._resume() or _State()
        for epoch in range(state.epoch, self.schedule.epochs):
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            self.network.eval()
            accuracy = self.validate()
            state = self._after_epoch(state, epoch, accuracy, time.monotonic() - started)
            self._report(epoch, loss, accuracy, state.seconds)
        self.network.load_state_dict(state.best_weights)
        self.network.eval()
        return TrainingReport(
            epochs=self.schedule.epochs,
            kept_epoch=state.best_epoch,
            seed=self.schedule.seed,
            seconds=state.seconds,
            torch_version=str(torch.__version__),
            accuracy=state.best_accuracy,
        )

    @property
    def _steps(self) -> int:
        return self.count // self.schedule.batch

    def _build_optimiser(self) -> None:
        schedule = self.schedule
        shifts = [m.bias for m in self.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        known = {id(shift) for shift in shifts}
        others = [p for p in self.network.parameters() if p.requires_grad and id(p) not in known]
        rates = [schedule.peak_rate, schedule.peak_rate * schedule.shift_rate]
        # Decay acts through the rate: divided here, it pulls on shifts as on all else.
        decays = [schedule.weight_decay, schedule.weight_decay / schedule.shift_rate]
        self._optimiser = torch.optim.SGD(
            [
                {"params": parameters, "lr": rate, "weight_decay": decay}
                for parameters, rate, decay in zip((others, shifts), rates, decays, strict=True)
            ],
            momentum=schedule.momentum,
            nesterov=True,
        )
        self._rates = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser,
            max_lr=rates,
            total_steps=schedule.epochs * self._steps,
            pct_start=schedule.warm_up,
            anneal_strategy=schedule.anneal,
            cycle_momentum=False,
        )

    def _train_epoch(self, epoch: int) -> float:
        self.network.train()
        generator = torch.Generator().manual_seed(self.schedule.seed * 100_003 + epoch)
        total, shown_at = 0.0, time.monotonic()
        for done, chosen in enumerate(self._batches(generator), start=1):
            loss = self.loss(chosen, generator, epoch)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self._optimiser.step()
            self._rates.step()
            total += float(loss.detach())
            if time.monotonic() - shown_at >= _SHOW_EVERY_S:
                shown_at = time.monotonic()
                self.step(epoch, done, self._steps)
        return total / self._steps

    def _batches(self, generator: Any) -> Iterator[Any]:
        order, size = torch.randperm(self.count, generator=generator), self.schedule.batch
        for step in range(self._steps):
            yield order[step * size : (step + 1) * size]

    def _after_epoch(self, state: _State, epoch: int, accuracy: tuple[float, ...], seconds: float) -> _State:
        # The mean over the exits: a network is kept for all of its exits, and a mean is less noisy than one
        # of them.
        better = not state.best_accuracy or sum(accuracy) >= sum(state.best_accuracy)
        weights = {name: value.clone() for name, value in self.network.state_dict().items()} if better else {}
        after = _State(
            epoch=epoch + 1,
            seconds=state.seconds + seconds,
            best_epoch=epoch + 1 if better else state.best_epoch,
            best_accuracy=accuracy if better else state.best_accuracy,
            best_weights=weights or state.best_weights,
        )
        self._save(after)
        return after

    def _report(self, epoch: int, loss: float, accuracy: tuple[float, ...], seconds: float) -> None:
        exits = " / ".join(f"{100 * value:.2f}" for value in accuracy)
        total = self.schedule.epochs
        self.progress(f"epoch {epoch + 1}/{total}  loss {loss:.3f}  validation {exits} %  {seconds:.0f} s")

    def _save(self, state: _State) -> None:
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "identity": self.identity,
            "state": asdict(state),
            "weights": self.network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._rates.state_dict(),
            "machine": _machine_of(self.network),
        }
        # Written aside and renamed, so that a cut never leaves half a checkpoint.
        aside = self.checkpoint.with_suffix(".part")
        torch.save(content, aside)
        aside.replace(self.checkpoint)

    def _resume(self) -> _State | None:
        if not self.checkpoint.is_file():
            return None
        # Wherever it was written: loading moves the values to where the network is.
        content = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
        if content["identity"] != self.identity:
            raise DataError(
                f"{self.checkpoint}: is from another seed or other settings", "delete it, or give another --work"
            )
        try:
            self.network.load_state_dict(content["weights"])
        except RuntimeError as error:
            raise DataError(
                f"{self.checkpoint}: is from a network of another structure", "delete it, or give another --work"
            ) from error
        self._optimiser.load_state_dict(content["optimiser"])
        self._rates.load_state_dict(content["schedule"])
        state = _State(**content["state"])
        self.progress(f"resuming after epoch {state.epoch} from {self.checkpoint}")
        return state


def _machine_of(network: Any) -> str:
    on = next(network.parameters()).device
    return str(torch.cuda.get_device_name(on)) if on.type == "cuda" else processor()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says of its training: how far it is, and the weights and accuracies of the epoch kept so far.

    machine: what the last epoch was trained on, in words; None where the checkpoint does not say.
    """

    identity: dict[str, Any]
    epochs: int
    kept_epoch: int
    accuracy: tuple[float, ...]
    seconds: float
    machine: str | None
    weights: dict[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what a `Loop` wrote, onto the CPU. Raises DataError for a file that is none of its checkpoints."""
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        state = _State(**content["state"])
        identity, machine = dict(content["identity"]), content.get("machine")
    except (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a checkpoint of a training ({why})", "delete it to train again") from error
    return Checkpoint(
        identity=identity,
        epochs=state.epoch,
        kept_epoch=state.best_epoch,
        accuracy=tuple(state.best_accuracy),
        seconds=state.seconds,
        machine=machine,
        weights=state.best_weights,
    )
