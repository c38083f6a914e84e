"""A machine's disk, as far as a node keeps its state there: a real directory that can break."""

from __future__ import annotations

import shutil
from pathlib import Path


class Disk:
    """Holds one node's state directory over all of its processes."""

    def __init__(self, place: Path) -> None:
        self.state_dir = place / "state"
        self._aside = place / "aside"
        self.state_dir.mkdir(parents=True)

    @property
    def works(self) -> bool:
        return self.state_dir.is_dir()

    def break_(self) -> None:
        """Let every read and write fail, until it is mended; nothing is lost."""
        if self.works:
            self.state_dir.rename(self._aside)
            self.state_dir.touch()  # whatever is looked for below it: not a directory

    def mend(self) -> None:
        """Work again."""
        if not self.works:
            self.state_dir.unlink()
            self._aside.rename(self.state_dir)

    def wipe(self) -> None:
        """Forget everything."""
        self.mend()
        shutil.rmtree(self.state_dir)
        self.state_dir.mkdir()
