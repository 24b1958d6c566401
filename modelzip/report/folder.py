"""The folder of a run: beside its final place until the run is whole, then renamed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import TracebackType

from modelzip.errors import ModelzipError, OutputError, SettingError
from modelzip.measure.machine import sha256
from modelzip.report.record import FILE, write

RECIPE = "recipe.yaml"


def partial(out: Path) -> Path:
    """Where a run into `out` is until it is whole.

    >>> partial(Path("runs/digits")).as_posix()
    'runs/digits.partial'
    """
    return out.with_name(f"{out.name}.partial")


class RunFolder:
    """Where a run writes: `out` + ".partial", which becomes `out` when `finish` is called.

    So `out` is always a whole run. An unfinished folder stays if it holds a checkpoint, or if the
    run was interrupted, and `resume=True` takes it up.

    Raises:
        OutputError: `out` is there already, or is unfinished and `resume` is False, or cannot be
            made.
        SettingError: the unfinished run was of another recipe.
    """

    def __init__(self, out: str | Path, *, recipe: str, resume: bool) -> None:
        self.out = Path(out)
        if self.out.exists():
            raise OutputError(
                f"{self.out} exists already; give another folder with --out, or remove it"
            )
        self.path = partial(self.out)
        self.resumed = resume and self.path.exists()
        if self.resumed:
            self._check_recipe(recipe)
            return
        if self.path.exists():
            raise OutputError(
                f"{self.path} holds an unfinished run; continue it with --resume, or remove it"
            )
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.path}: {error.strerror}") from error
        write(self.path / RECIPE, recipe)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or not issubclass(kind, Exception):  # Ctrl-C leaves it to be resumed
            return
        finished = any(self.path.rglob("*.safetensors"))
        begun = any(self.path.rglob("*.training"))
        # a wrong recipe cannot be resumed; a full disk can, from what was being trained
        own_fault = issubclass(kind, ModelzipError) and not issubclass(kind, OutputError)
        if not (finished or (begun and not own_fault)):
            shutil.rmtree(self.path, ignore_errors=True)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every file there is."""
        return {path.name: sha256(path) for path in sorted(self.path.iterdir()) if path.is_file()}

    def finish(self, texts: dict[str, str]) -> None:
        """Write the report's files, `report.json` last, and give the folder its own name."""
        for name, text in sorted(texts.items(), key=lambda item: item[0] == FILE):
            write(self.path / name, text)
        try:
            self.path.rename(self.out)
        except OSError as error:
            taken = error.errno in (errno.EEXIST, errno.ENOTEMPTY)
            reason = "it exists by now" if taken else error.strerror
            raise OutputError(f"cannot name {self.path} {self.out}: {reason}") from error

    def _check_recipe(self, recipe: str) -> None:
        path = self.path / RECIPE
        try:
            before = path.read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot read {path}: {error.strerror}; remove {self.path}"
            ) from error
        if before != recipe:
            old, new = before.splitlines(), recipe.splitlines()
            line = next((b for a, b in zip(old, new, strict=False) if a != b), "its length")
            raise SettingError(
                f"{self.path} was begun with another recipe (now: {line.strip()}); "
                "resume with the same one, or remove the folder"
            )
