"""The finding of a check: verdict, evidence and the config line that repairs it; tables and JSON of findings."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from rich.table import Table
from rich.text import Text

from opdlight.system import console


class Verdict(StrEnum):
    """How severe a finding is: `warn` costs quality or memory, `fail` makes the run useless or stops it."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


COLOURS = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    verdict: Verdict
    evidence: str
    about: str = ""  # the task or teacher that was checked
    repair: str = ""  # overrides for the command line, or a sentence where no option helps

    def __str__(self) -> str:
        about = f" ({self.about})" if self.about else ""
        repair = f" Repair: {self.repair}" if self.repair else ""
        return f"{self.verdict}: {self.check}{about}: {self.evidence}.{repair}"


def override(key: str, value: object) -> str:
    """`key=value` as typed in a shell, quoted for Hydra and for the shell.

    >>> print(override("model.dtype", "float32"), override("mask.tokens", ["<think>", 7]))
    model.dtype=float32 mask.tokens='["<think>",7]'
    """
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z]\w*", value)
    return f"{key}={value if plain else shlex.quote(_hydra(value))}"


def _hydra(value: object) -> str:
    if isinstance(value, str):
        # in Hydra's quotes a backslash escapes only a quote, and ${ would begin an interpolation
        return '"' + value.replace('"', '\\"').replace("${", "\\${") + '"'
    if isinstance(value, Sequence):
        return "[" + ",".join(_hydra(v) for v in value) + "]"
    return str(value)


def merge_findings(findings: Sequence[Finding]) -> list[Finding]:
    """The findings; those with the same verdict, evidence and repair become one that names all their checks."""
    met: dict[tuple[str, str, str], list[Finding]] = {}
    for number, f in enumerate(findings):
        same = (f.verdict, f.evidence, f.repair) if f.verdict is not Verdict.PASS else ("", "", str(number))
        met.setdefault(same, []).append(f)
    return [
        replace(
            group[0],
            check=", ".join(dict.fromkeys(f.check for f in group)),
            about=", ".join(dict.fromkeys(f.about for f in group if f.about)),
        )
        for group in met.values()
    ]


def worst(findings: Sequence[Finding]) -> Verdict:
    """The worst verdict; `pass` without findings."""
    order = list(Verdict)
    return max((f.verdict for f in findings), key=order.index, default=Verdict.PASS)


def table(findings: Sequence[Finding]) -> Table:
    """The findings as a table; a repair stands below its evidence."""
    narrow = console.narrow()  # then `about` stands below the check, to leave room for the evidence
    headings = ("check", "", "evidence") if narrow else ("check", "of", "", "evidence")
    shown = console.table(*headings, title="opdlight.doctor", show_lines=True)
    for f in findings:
        evidence = Text(f.evidence)
        if f.repair:
            evidence.append(f"\n→ {f.repair}", style="bold")
        check = [Text(f"{f.check}\n{f.about}".rstrip())] if narrow else [Text(f.check), Text(f.about)]
        shown.add_row(*check, Text(f.verdict, style=COLOURS[f.verdict]), evidence)
    return shown


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON: `{"verdict": …, "findings": [{check, verdict, evidence, about, repair}]}`."""
    lines = [asdict(f) for f in findings]
    return json.dumps({"verdict": worst(findings), "findings": lines}, indent=2, ensure_ascii=False)
