"""The line of a progress bar, fitted to the terminal's width."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_WIDEST, _NARROWEST = 40, 4  # of the bar, in columns of the terminal
_GAP = "  "


class FittedLine(ProgressColumn):
    """What is done, a bar, steps out of all, time left, scalars: the only column of a ``Progress``.

    Rich's own columns give way to each other, steps and time left among them. Here these two are always
    whole. The bar takes what the scalars leave it; where it has become as short as it may, scalars are
    dropped from the right, and where there is no space for a bar, the bar is. A task has the field
    ``scalars``, texts with the most important one first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._left = TimeRemainingColumn()
        self._terminal = 0
        self._bar = _WIDEST

    def render(self, task: Task) -> _Line:
        return _Line(self, task)

    def table(self, task: Task, width: int) -> Table:
        """The line, at most ``width`` columns wide where steps and time left are."""
        n, total = int(task.completed), int(task.total or 0)
        # As wide as "evaluating", so that nothing moves when that begins.
        head, steps = Text(f"{task.description:<10}"), Text(f"{n:>{len(str(total))}}/{total}")
        left = self._left.render(task)
        fixed = sum(1 + len(text) for text in (head, steps, left))
        if fixed > width:
            return _row(steps, left)
        scalars = list(task.fields["scalars"])
        while scalars and fixed + _NARROWEST + 1 + len(_GAP.join(scalars)) > width:
            scalars.pop()
        shown = Text(_GAP.join(scalars))
        space = self._steady(width, width - fixed - len(shown) - 1)
        if space < _NARROWEST:
            return _row(head, steps, left)
        bar = ProgressBar(total=max(1, total), completed=n, width=space)
        return _row(head, bar, steps, left, shown)

    def _steady(self, width: int, space: int) -> int:
        """The bar's width: it only shrinks, or it would jump with the digits of every step."""
        if width != self._terminal:
            self._terminal, self._bar = width, _WIDEST
        if space >= _NARROWEST:
            self._bar = min(self._bar, space)
        return min(self._bar, space)


class _Line:
    """The line as rich draws it: only then the width is known."""

    def __init__(self, line: FittedLine, task: Task):
        self.line, self.task = line, task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.line.table(self.task, options.max_width)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(options.max_width, options.max_width)


def _row(*cells: Text | ProgressBar) -> Table:
    table = Table.grid(padding=(0, 1))
    for _ in cells:
        table.add_column(no_wrap=True)
    table.add_row(*cells)
    return table
