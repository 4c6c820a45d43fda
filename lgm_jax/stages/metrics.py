"""The file of a distillation's losses."""

from __future__ import annotations

import json
import time

from etils import epath

from lgm_jax import files, hosts
from lgm_jax.errors import UserError


class Metrics:
    """`metrics.jsonl`: one line for each logged step, also of a run that was continued."""

    def __init__(self, path: epath.Path, start: int):
        """Reads the lines of earlier processes, up to the step from which the run continues."""
        self._path = path
        try:
            lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
            self._lines = [line for line in lines if line["step"] <= start]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"{path} is damaged: delete it to continue without its lines"
            ) from error
        self._before = self._lines[-1]["seconds"] if self._lines else 0.0
        self._clock = time.perf_counter()

    def elapsed(self) -> float:
        """Returns the seconds spent, in earlier processes too."""
        return self._before + time.perf_counter() - self._clock

    def last_loss(self) -> float | None:
        """Returns the newest loss, of earlier processes too."""
        return self._lines[-1]["loss"] if self._lines else None

    def write(self, step: int, loss: float, rate: float) -> None:
        """Adds a line."""
        line = {"step": step, "loss": loss, "steps_per_second": rate, "seconds": self.elapsed()}
        self._lines.append({name: round(value, 6) for name, value in line.items()})
        if not hosts.is_first():
            return
        with files.replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
