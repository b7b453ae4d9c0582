"""The flows of docs/patterns.md, by name."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "patterns.md").read_text(encoding="utf-8")
FLOWS = {re.findall(r"^flow: (\w+)", text)[0]: text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)}
