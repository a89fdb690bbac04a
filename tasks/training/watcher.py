"""How far a training is, told to a person and to Prefect."""

import time
from typing import Any

from segcore.recipes import TrainRecipe
from tasks import progress

_SAY_EVERY_S = 10.0


class _Artifact(progress.PrefectArtifact):
    """Steps instead of images."""

    text = ""

    def _text(self, state: progress.State) -> str:  # type: ignore[override]
        return self.text or f"step {state.done} of {state.total}"


class Watcher:
    """Tells a person and Prefect how far a training is, and counts in `starts` how often its workers have begun."""

    def __init__(self, recipe: TrainRecipe, *, silent: bool) -> None:
        """silent: tell nobody, only count."""
        self.recipe, self.silent = recipe, silent
        self.starts = 0
        self.artifact: _Artifact | None = None if silent else _Artifact()
        self.state = progress.State(recipe.iterations)
        self._first: tuple[int, float] | None = None
        self._said = 0.0
        self._tell_prefect("begin")

    def hear(self, news: dict[str, Any]) -> None:
        """One message of the workers."""
        self.state.done = max(self.state.done, news["step"]) if "resumed" not in news else news["step"]
        if "resumed" in news:
            self.starts += 1
            self._first = None
            if news["resumed"] and not self.silent:
                workers = f"{news['workers']} worker{'s' * (news['workers'] > 1)}"
                progress.say(f"Going on from the checkpoint of step {news['step']}, with {workers}.")
        elif "mean_iou" in news and "loss" not in news:
            if not self.silent:
                progress.say(f"step {news['step']}: validation mean IoU {100 * news['mean_iou']:.2f} %")
        else:
            self._advance(news)

    def end(self) -> None:
        """The session is over."""
        self._tell_prefect("end")

    def _advance(self, news: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (news["step"], now)
            return
        steps, seconds = news["step"] - self._first[0], now - self._first[1]
        rate = steps / seconds if seconds > 0 else 0.0
        left = f", {_duration((self.state.total - news['step']) / rate)} left" if rate else ""
        busy = 1 - news["seconds_data"] / max(1e-9, news["seconds"])
        text = (
            f"step {news['step']} of {self.state.total}, loss {news['loss']:.4f}, "
            f"{rate * self.recipe.batch_size:.1f} images/s, device busy {100 * busy:.0f} %{left}"
        )
        if self.artifact is not None:
            self.artifact.text = text
        self._tell_prefect("advance")
        if not self.silent and now - self._said > _SAY_EVERY_S:
            self._said = now
            progress.say(text)

    def _tell_prefect(self, what: str) -> None:
        if self.artifact is None:
            return
        try:
            getattr(self.artifact, what)(self.state)
        except Exception:  # A dead Prefect server is no reason to stop a training
            self.artifact = None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
