"""Known vulnerabilities in the tested versions (constraints.txt), by pip-audit. It asks a service: not part of CI.

    make audit

What is known and accepted stands in scripts/audit_exceptions.txt, one a line: the advisory, the last day on which
it is accepted, and why. A day that has passed is an error, as is a line that cannot be read.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = ROOT / "scripts" / "audit_exceptions.txt"


def accepted(text: str, today: datetime.date) -> list[str]:
    """Advisories that are accepted today.

    Raises:
        ValueError: at a line that is out of date or no exception.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{EXCEPTIONS.name}, line {number}"
        advisory, day, reason = [*line.split(maxsplit=2), "", ""][:3]
        try:
            last_day = datetime.date.fromisoformat(day)
        except ValueError:
            raise ValueError(
                f"{where}: {day!r} is no date; write ADVISORY YYYY-MM-DD WHY"
            ) from None
        if not reason:
            raise ValueError(f"{where}: no reason; write ADVISORY YYYY-MM-DD WHY")
        if last_day < today:
            raise ValueError(f"{where}: {advisory} was accepted until {day}; look at it again")
        found.append(advisory)
    return found


def main() -> None:
    try:
        advisories = accepted(EXCEPTIONS.read_text("utf-8"), datetime.date.today())
    except ValueError as error:
        sys.exit(str(error))
    ignored = [part for advisory in advisories for part in ("--ignore-vuln", advisory)]
    # strict: what the service does not know is an error, and not left out
    options = [
        "--requirement",
        str(ROOT / "constraints.txt"),
        "--no-deps",
        "--disable-pip",
        "--strict",
    ]
    sys.exit(subprocess.run([sys.executable, "-m", "pip_audit", *options, *ignored]).returncode)


if __name__ == "__main__":
    main()
