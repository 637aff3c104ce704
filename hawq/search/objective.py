"""What a search asks: how good a whole plan is, measured once, remembered, counted, and kept for a killed search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from hawq.errors import UserError
from hawq.progress import SILENT, Progress, Task
from hawq.records import Precision
from hawq.resuming import Checkpoint

Measure = Callable[[Mapping[str, Precision]], Iterable[Tensor]]
Hopeless = Callable[[Tensor], bool]


@dataclass(frozen=True)
class Evaluation:
    """One measured plan: its bits, its mean over the images, and how many images that took."""

    plan: dict[str, Precision]
    mean: float
    images: int


class Objective:
    """Values of whole plans, less is better, on the same images for every plan.

    Every search is a function of its seed and of what it measures. So an unfinished one is resumed by starting it
    again: plans that were measured before are answered from the checkpoint, all else repeats itself bit for bit.

    Used as `with Objective(...) as objective:`, which opens and closes the progress bar and stores what is left.

    Args:
        measure: plan → values of the images, one tensor per part, each computed when it is asked for: (n,), or (n, 2)
            where plans are judged by the first value of an image, and no gain may raise the second.
        parts: images in each part.
        most: plans that may be measured.
        checkpoint: where measured plans are stored every `save_every_seconds`.
        progress: advanced with every plan that counts, measured now or in an earlier process.
        title: of the progress bar.

    Raises:
        UserError: fewer than two images.
    """

    def __init__(
        self,
        measure: Measure,
        parts: Sequence[int],
        most: int,
        *,
        checkpoint: Checkpoint | None = None,
        save_every_seconds: float = 20.0,
        progress: Progress = SILENT,
        title: str = "measuring plans",
    ) -> None:
        if sum(parts) < 2:
            raise UserError("plans are judged on at least two images: their differences give the standard error")
        self._measure, self._parts, self.most = measure, tuple(parts), most
        self._checkpoint, self._save_every, self._saved = checkpoint, save_every_seconds, time.monotonic()
        self._stored = _read(checkpoint.load() if checkpoint else None)
        self._known: dict[str, Tensor] = {}
        self._task_of = progress.task(title, most)
        self._task: Task | None = None
        self.history: list[Evaluation] = []
        """Plans in the order in which they were first measured."""

    def __enter__(self) -> Objective:
        self._task = self._task_of.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._save(now=True)
        self._task_of.__exit__(kind, error, trace)
        self._task = None

    @property
    def num_images(self) -> int:
        """Images that a plan is judged on."""
        return sum(self._parts)

    @property
    def evaluations(self) -> int:
        """Plans measured so far, each counted once."""
        return len(self.history)

    @property
    def left(self) -> int:
        """Plans that may still be measured."""
        return self.most - self.evaluations

    @property
    def best(self) -> Evaluation | None:
        """The plan with the least mean among those measured on all images, the first of equals; None before any."""
        whole = [one for one in self.history if one.images == self.num_images]
        return min(whole, key=lambda one: one.mean, default=None)

    @property
    def curve(self) -> list[float]:
        """Least mean over all images after 1, 2, … measured plans; a plan that was dropped early changes nothing."""
        least, found = float("inf"), []
        for one in self.history:
            least = min(least, one.mean) if one.images == self.num_images else least
            found.append(least)
        return found

    def knows(self, plan: Mapping[str, Precision]) -> bool:
        """Whether a plan was measured, at least on some of the images."""
        return _key(plan) in self._known

    def second_values(self, plan: Mapping[str, Precision]) -> Tensor:
        """Second values (n,) of the images that a known plan was measured on; the first where there are no others."""
        return self._known[_key(plan)][:, 1]

    def values(self, plan: Mapping[str, Precision]) -> Tensor:
        """Values of all images (N,), float64, for a plan; a known plan is not measured again.

        Raises UserError where no more plans may be measured, or a value is not finite.
        """
        return self.race(plan, lambda values: False)

    def mean(self, plan: Mapping[str, Precision]) -> float:
        """Mean over all images. Raises as `values` does."""
        return float(self.values(plan).mean())

    def race(self, plan: Mapping[str, Precision], hopeless: Hopeless) -> Tensor:
        """Values (n,) of as many images as it took for `hopeless` to be true of them, else of all.

        `hopeless` is asked after each part but the last. Raises as `values` does.
        """
        key = _key(plan)
        known = self._known.get(key)
        if known is None and self.left <= 0:
            raise UserError(f"all {self.most} evaluations are used up: give more")
        source = known if known is not None else self._stored.get(key)
        found = None if source is None else self._enough(source, hopeless)
        fresh = found is None
        if found is None:
            found = self._run(plan, hopeless)
        if known is None or len(found) > len(known):
            self._known[key] = found
        if known is None:
            self.history.append(Evaluation(dict(plan), float(found[:, 0].mean()), len(found)))
            self._tell()
        elif len(found) > len(known):
            self._replace(plan, found)
        if fresh:
            self._save()
        return found[:, 0]

    def _enough(self, values: Tensor, hopeless: Hopeless) -> Tensor | None:
        """As many of known values as a race needs; None where they are too few."""
        done = 0
        for size in self._parts[:-1]:
            done += size
            if done > len(values):
                return None
            if hopeless(values[:done, 0]):
                return values[:done]
        return values if len(values) == self.num_images else None

    def _run(self, plan: Mapping[str, Precision], hopeless: Hopeless) -> Tensor:
        parts: list[Tensor] = []
        for part in self._measure(plan):
            values = part.detach().double().cpu()
            parts.append(values if values.dim() == 2 else values[:, None].expand(-1, 2))
            if not bool(parts[-1].isfinite().all()):
                raise UserError("a plan has a value that is not finite: check the network and the images")
            if len(parts) < len(self._parts) and hopeless(torch.cat(parts)[:, 0]):
                break
        return torch.cat(parts)

    def _replace(self, plan: Mapping[str, Precision], values: Tensor) -> None:
        """A plan that was dropped early has now been measured on more images."""
        place = next(at for at, one in enumerate(self.history) if one.plan == dict(plan))
        self.history[place] = Evaluation(dict(plan), float(values[:, 0].mean()), len(values))

    def _tell(self) -> None:
        best = self.best
        if self._task is not None:
            self._task.advance(1, f"best {best.mean:.4g}" if best else "")

    def _save(self, *, now: bool = False) -> None:
        if self._checkpoint is None or not (now or time.monotonic() - self._saved >= self._save_every):
            return
        newer = {key: values for key, values in self._known.items() if len(values) > self._length_stored(key)}
        if newer:
            self._stored |= newer
            self._checkpoint.save({"plans": list(self._stored), "values": list(self._stored.values())})
        self._saved = time.monotonic()

    def _length_stored(self, key: str) -> int:
        return len(self._stored[key]) if key in self._stored else 0


def _key(plan: Mapping[str, Precision]) -> str:
    return " ".join(f"{name}:{bits.weight_bits}/{bits.activation_bits}" for name, bits in plan.items())


def _read(state: dict[str, Any] | None) -> dict[str, Tensor]:
    """Plan → values (n, 2). Plans whose second values were not kept, as before there were any, are measured again."""
    known = zip(state["plans"], state["values"], strict=True) if state else ()
    return {plan: values for plan, values in known if values.dim() == 2}
