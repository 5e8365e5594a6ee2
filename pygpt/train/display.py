"""What a training shows while it runs: a progress line in a terminal, plain lines elsewhere."""

import time
from collections import deque
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text


@dataclass(frozen=True)
class StepReport:
    """What happened in one step."""

    step: int  # how many steps are done now
    loss: float
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens: int
    seconds: float
    share_of_peak: float | None
    skipped: str | None  # the reason why the parameters were left as they were

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the step over the time it took."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Display:
    """Shows nothing; what a trainer tells whoever watches it."""

    def begin(self, done: int, steps: int) -> None:
        """The training goes on from ``done`` of ``steps`` steps."""

    def step(self, report: StepReport) -> None:
        """A step was done."""

    def evaluation(self, step: int, loss: float) -> None:
        """The held-out text was evaluated."""

    def sample(self, step: int, text: str) -> None:
        """The model wrote a text."""

    def note(self, text: str) -> None:
        """Something else worth a line."""

    def end(self) -> None:
        """The training ends, for whatever reason."""


class TerminalDisplay(Display):
    """A live progress line in a terminal; a line every ``log_every`` steps when the output is a file or a pipe.

    Args:
        console: where to print.
        log_every: steps between lines when there is no terminal.
    """

    def __init__(self, console: Console, log_every: int = 10) -> None:
        self.console = console
        self.log_every = log_every
        self._recent: deque[StepReport] = deque(maxlen=20)
        self._steps = 0
        self._began = (0.0, 0)  # when, and how many steps were done then
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, done: int, steps: int) -> None:
        """Start the progress line."""
        self._steps = steps
        self._began = (time.monotonic(), done)
        self._recent.clear()
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]training"),
                BarColumn(max(8, min(40, self.console.width - 76)), complete_style="cyan", finished_style="green"),
                TextColumn("{task.completed}/{task.total}"),
                _StatusColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("", total=steps, completed=done, status="")
            self._progress.start()

    def step(self, report: StepReport) -> None:
        """Move the progress line, or print one now and then."""
        self._recent.append(report)
        if report.skipped:
            self.note(f"[yellow]step {report.step} skipped: {report.skipped}")
        if self._progress is not None:
            self._progress.update(self._task, completed=report.step, status=self._status(report))
        elif report.step % self.log_every == 0 or report.step in (1, self._steps):
            self.console.print(f"step {report.step}/{self._steps}  {self._status(report)}", highlight=False)

    def evaluation(self, step: int, loss: float) -> None:
        """Print the loss of the held-out text."""
        self.note(f"step {step:>6}  validation loss [bold]{loss:.4f}")

    def sample(self, step: int, text: str) -> None:
        """Print a text, dimmed and indented, without its empty lines."""
        self.note(f"step {step:>6}  sample")
        self.console.print(Text("\n".join("  │ " + line for line in text.splitlines() if line.strip()), style="dim"))

    def note(self, text: str) -> None:
        """Print a line above the progress line; rich's markup is followed."""
        self.console.print(text, highlight=False)

    def end(self) -> None:
        """Leave the progress line as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _status(self, report: StepReport) -> str:
        seconds = sum(r.seconds for r in self._recent) or 1e-9
        speed = sum(r.tokens for r in self._recent) / seconds
        peaks = [r.share_of_peak for r in self._recent if r.share_of_peak is not None]
        started, done_then = self._began
        left = (time.monotonic() - started) / max(1, report.step - done_then) * (self._steps - report.step)
        parts = [f"loss {report.loss:.4f}", f"{speed:,.0f} tokens/s"]
        if peaks:
            parts.append(f"{sum(peaks) / len(peaks):.0%} of peak")
        return "  ".join([*parts, f"{_duration(left)} left"])


class _StatusColumn(ProgressColumn):
    """The loss, the speed and the time left, as the display has put them together."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["status"], no_wrap=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
