"""Check the tested versions (constraints.txt) for known vulnerabilities with pip-audit and the package index.

    make audit
    make audit ARGS=--offline-ok    # as CI runs it: passes if the index answers for nothing

Known and accepted advisories are listed in scripts/audit_exceptions.txt, one per line: the advisory, the last
day on which it is accepted, and the reason. An expired date is an error, as is a malformed line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = ROOT / "scripts" / "audit_exceptions.txt"


def accepted(text: str, today: datetime.date) -> list[str]:
    """Return the advisories that are accepted today.

    Raises:
        ValueError: if a line has expired or is malformed.
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
                f"{where}: {day!r} is not a date; write ADVISORY YYYY-MM-DD WHY"
            ) from None
        if not reason:
            raise ValueError(f"{where}: no reason; write ADVISORY YYYY-MM-DD WHY")
        if last_day < today:
            raise ValueError(f"{where}: {advisory} was accepted until {day}; review it again")
        found.append(advisory)
    return found


def judged(report: dict, offline_ok: bool) -> tuple[list[str], bool]:
    """Return the lines to print for pip-audit's JSON report, and whether the audit passes.

    pip-audit itself reports packages that the index does not know as "no known vulnerabilities".

    Args:
        report: pip-audit's report, ``{"dependencies": [...]}``.
        offline_ok: pass if the index answered for no package at all.
    """
    packages = report["dependencies"]
    unknown = [own["name"] for own in packages if "skip_reason" in own]
    lines = [
        f"{own['name']} {own['version']}: {vulnerability['id']}, "
        f"fixed in {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for own in packages
        for vulnerability in own.get("vulns", ())
    ]
    if packages and len(unknown) == len(packages):
        return ["not audited: the index answered for no package"], offline_ok
    if unknown:
        lines.append(f"not audited, unknown to the index: {', '.join(unknown)}")
    if not lines:
        return [f"{len(packages)} packages, no known vulnerabilities"], True
    return lines, False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--offline-ok", action="store_true", help="pass if the index answers for nothing"
    )
    arguments = parser.parse_args()
    try:
        advisories = accepted(EXCEPTIONS.read_text("utf-8"), datetime.date.today())
    except ValueError as error:
        sys.exit(str(error))
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--requirement", str(ROOT / "constraints.txt"), "--no-deps", "--disable-pip"]
    command += [part for advisory in advisories for part in ("--ignore-vuln", advisory)]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        offline = re.search(r"ConnectionError|Could not connect|Timeout", done.stderr)
        if arguments.offline_ok and offline:
            print("not audited: no connection to the index")
            sys.exit()
        sys.exit(f"pip-audit failed, exit code {done.returncode}:\n{done.stderr[-2000:]}")
    lines, passes = judged(report, arguments.offline_ok)
    print("\n".join(lines))
    sys.exit(not passes)


if __name__ == "__main__":
    main()
