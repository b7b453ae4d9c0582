"""JUnit XML, which every CI server shows: a file is a test case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from runner.diagnostics import Diagnostic
from runner.lang import report
from runner.source import Document


def text(
    diagnostics: Sequence[Diagnostic],
    documents: Mapping[str, Document],
    files: Iterable[str],
    folder: str,
    *,
    strict: bool,
) -> str:
    """One case for each of `files` and for whatever else has a fault. All errors of a file are one failure, because
    readers of JUnit count on one; warnings are its output, unless `strict` makes them failures."""
    names = sorted({*files, *(d.span.filename for d in diagnostics)})
    suite = Element("testsuite", name="flowrun validate", tests=str(len(names)), errors="0", skipped="0")
    for name in names:
        of_file = [d for d in diagnostics if d.span.filename == name]
        failing = [d for d in of_file if strict or d.is_error]
        case = SubElement(suite, "testcase", classname="flowrun", name=report.printable(folder + name), time="0")
        if failing:
            codes = ", ".join(sorted({d.code for d in failing}))
            failure = SubElement(case, "failure", type=codes, message=report.printable(failing[0].summary))
            failure.text = _drawn(failing, documents)
        if len(failing) < len(of_file):
            SubElement(case, "system-out").text = _drawn([d for d in of_file if d not in failing], documents)
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    root = Element("testsuites", {key: suite.get(key, "0") for key in ("name", "tests", "failures", "errors")})
    root.append(suite)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode")


def _drawn(diagnostics: Sequence[Diagnostic], documents: Mapping[str, Document]) -> str:
    return "\n" + "\n".join(report.full(diagnostics, documents))
