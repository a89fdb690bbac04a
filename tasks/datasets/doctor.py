"""A visit to the dataset doctor: `segment-archive prepare --check`."""

from tasks import storage
from tasks.datasets import check as dataset_check
from tasks.datasets import gallery as dataset_gallery
from tasks.datasets import voc_layout
from tasks.datasets.check import Examined
from tasks.datasets.voc_layout import OwnData


class Consultation:
    """One dataset that was examined; nothing is written into it but by `fix`."""

    def __init__(self, folder: str, given: OwnData | None = None) -> None:
        """Read every pair of a folder. Raises JobError where there is none."""
        self._arguments = (folder, given or OwnData())
        self.examined = self._examine()

    def fix(self) -> list[str]:
        """Mend what is safe, and look again; the files that were changed."""
        changed = dataset_check.fix(self.examined)
        if changed:
            self.examined = self._examine()
        return changed

    def write_report(self, place: str) -> None:
        """Write every finding as CSV."""
        storage.write_whole(storage.locate(place), dataset_check.findings_csv(self.examined.findings))

    def write_gallery(self, place: str) -> bool:
        """Write a picture of a few samples; False where no pair can be shown."""
        lists = {
            name: [i for i in ids if self.examined.checks[i].digest] for name, ids in self.examined.layout.lists.items()
        }
        picture = dataset_gallery.gallery(self.examined, {name: ids for name, ids in lists.items() if ids})
        if picture is not None:
            storage.write_whole(storage.locate(place), picture)
        return picture is not None

    def _examine(self) -> Examined:
        folder, given = self._arguments
        layout = voc_layout.read_layout(storage.locate(folder), given)
        return dataset_check.examine(layout)
