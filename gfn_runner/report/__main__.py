"""``python -m gfn_runner.report``: compare finished runs in tables and figures; write run and sweep pages."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gfn_runner.errors import Problem, UserError, show
from gfn_runner.report.compose import report_content
from gfn_runner.report.page import Picture, render
from gfn_runner.report.run_page import write_run_page
from gfn_runner.report.runs import Run, find_runs, read_runs
from gfn_runner.report.summary import Section, notes, sections
from gfn_runner.report.sweep_page import write_sweep_page
from gfn_runner.runtime.sweep_record import is_sweep
from gfn_runner.runtime.terminal import prepare_output

_OF_COMPARISONS = ("--out", "--metrics", "--figures", "--no-figures")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. On user errors, exit with status 2 and leave any existing report unchanged."""
    given = list(sys.argv[1:] if argv is None else argv)
    prepare_output()
    arguments = _parser().parse_args(given)
    try:
        if arguments.pages:
            for option in given:
                if option.partition("=")[0] in _OF_COMPARISONS:
                    allowed = "only folders: the path and the charts of a page are fixed"
                    raise UserError.one(option, "given with --pages", allowed)
            for path in write_pages(arguments.runs):
                print(path)
            return
        runs = read_runs(find_runs(arguments.runs))
        found = sections(runs, arguments.metrics)
        if arguments.out.exists() and not arguments.out.is_dir():
            raise UserError.one(
                "--out", f"{arguments.out} is a file", "a new or an existing folder"
            )
        written = _write(runs, found, arguments.out, given, figures=arguments.figures)
    except UserError as error:
        show(error.problems, "no report was written")
        raise SystemExit(2) from None
    except OSError as error:
        show([Problem(str(error.filename), str(error.strerror))], "no report was written")
        raise SystemExit(2) from None
    for note in notes(runs, found):
        print(f"note: {note}")
    for path in written:
        print(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gfn_runner.report",
        description="Tables and figures from any set of finished runs; with --pages, one page "
        "for each run, finished or not, and for each sweep.",
    )
    parser.add_argument(
        "runs", nargs="+", help="folders of runs, or folders above them; quoted patterns work too"
    )
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=(),
        metavar="NAME",
        help="columns, instead of the task's headline and log_reward, diversity, phi_spread",
    )
    parser.add_argument(
        "--figures", action=argparse.BooleanOptionalAction, default=True, help="draw figures"
    )
    parser.add_argument(
        "--pages",
        action="store_true",
        help="write report.html into the folder of each run and sweep, instead of a comparison",
    )
    return parser


def _write(
    runs: Sequence[Run],
    found: Sequence[Section],
    out: Path,
    arguments: Sequence[str],
    *,
    figures: bool,
) -> list[Path]:
    """Build the report in a temporary folder, then move it to ``out``; a failure keeps the old one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as made:
        folder = Path(made)
        pictures: list[tuple[list[Picture], list[str]]] = [([], []) for _ in found]
        if figures:
            # Imported only here: it takes half of the startup time.
            from gfn_runner.report.method_figures import draw

            pictures = [draw(section, folder) for section in found]
        content = report_content(runs, found, pictures, out, arguments)
        for name in ("report.md", "report.html"):
            (folder / name).write_text(render(name, **content), encoding="utf-8")
        out.mkdir(exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            (folder / name).replace(out / name)
    return [out / name for name in names]


def write_pages(given: Sequence[str]) -> list[Path]:
    """Write ``report.html`` into the folder of every run and every sweep.

    A folder is a sweep if Hydra created it for one, or if it was given and directly contains runs.

    Raises:
        UserError: lists every folder without runs and every run that cannot be read; the pages of all
            other runs are written nevertheless.

    Returns:
        The paths of the written files, sweep pages last.
    """
    written: list[Path] = []
    problems: list[Problem] = []

    def write(folder: Path, how: Callable[[Path], Path]) -> None:
        try:
            written.append(how(folder))
        except UserError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(Problem(str(folder), f"its page cannot be written ({error})"))

    folders = _folders(given)
    for folder in folders:
        write(folder, write_run_page)
    asked = {Path(text).resolve() for text in given}
    parents = dict.fromkeys(folder.parent for folder in folders)
    sweeps = [p for p in parents if is_sweep(p) or p.resolve() in asked]
    sweeps += [Path(text) for text in given if is_sweep(Path(text)) and Path(text) not in sweeps]
    for folder in sweeps:
        write(folder, write_sweep_page)
    if problems:
        raise UserError(problems)
    return written


def _folders(given: Sequence[str]) -> list[Path]:
    """Find run folders; sweeps may have none, if all their jobs failed before writing a config."""
    try:
        return find_runs(given)
    except UserError:
        if all(is_sweep(Path(text)) for text in given):
            return []
        raise


if __name__ == "__main__":
    main()
