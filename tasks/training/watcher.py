"""Progress of a training, from what its workers report."""

from typing import Any

from segcore.recipes import TrainRecipe
from tasks import progress


class Watcher:
    """Reports how far a training is, and counts in `starts` how often its workers have begun."""

    def __init__(self, recipe: TrainRecipe, measure_steps: int) -> None:
        """measure_steps: how many steps are only measured; 0 trains."""
        self.recipe = recipe
        self.starts = 0
        title = "measuring" if measure_steps else "training"
        self._tracker = progress.Tracker(measure_steps or recipe.iterations, title=title, unit="steps")

    def hear(self, news: dict[str, Any]) -> None:
        """One message of the workers."""
        if "resumed" in news:
            self.starts += 1
        if "resumed" in news:
            self._tracker.restart(news["step"])
            if news["resumed"]:
                workers = f"{news['workers']} worker{'s' * (news['workers'] > 1)}"
                progress.say(f"Going on from the checkpoint of step {news['step']}, with {workers}.")
        elif "mean_iou" in news and "loss" not in news:
            progress.say(f"step {news['step']}: validation mean IoU {100 * news['mean_iou']:.2f} %")
        else:
            busy = 1 - news["seconds_data"] / max(1e-9, news["seconds"])
            speed = self._tracker.state.rate * self.recipe.batch_size
            self._tracker.advance(
                max(0, news["step"] - self._tracker.state.done),
                note=f"loss {news['loss']:.4f}, "
                + (f"{speed:.1f} images/s, " if speed else "")
                + f"device busy {100 * busy:.0f} %",
            )

    def end(self) -> None:
        """The session is over."""
        self._tracker.end()
