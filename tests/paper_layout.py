"""`docs/paper_pack` with texts of our own in the places where the paper's are to be pasted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

PAPER_PACK = Path(__file__).resolve().parents[1] / "docs" / "paper_pack"

# The first marks of a file first; headings and placeholders as the paper's layout has them.
PASTED = {
    "focal.toml": (
        "You bargain over the days until a debt is paid.\n\n## RULES\n- Name a figure every time.",
        "## ROLE\n- You are only the Creditor and say one sentence.",
        "## CASE\n- Outstanding Balance: ${outstanding_balance}\n"
        "- Your Target Timeline: {target_days} days in full\n- Recovery Stage: {recovery_stage}\n"
        "- Business: {business_sector}\n- Reason: {reason_for_overdue}",
        "## CURRENT SITUATION",
        "## EMOTIONAL STYLE\n(if there is one):",
        "Your counter-offer now:",
    ),
    "counterparty.toml": (
        "You own a business and owe money.",
        "## YOUR SITUATION\n- Outstanding Balance: ${outstanding_balance}\n"
        "- Your Preferred Timeline: {target_days} days\n- Business: {business_sector}\n"
        "- Reason: {reason_for_overdue}\n- Cash: {cash_flow_situation}",
        "## GOALS\n- Get as many days as you can.",
        "## ROLE\n- You are only the Debtor and say one sentence.",
        "## NEGOTIATION HISTORY",
        "## EMOTIONAL STYLE\n(if there is one):",
        "Your position now:",
    ),
    "judge.toml": (
        "You rate what creditors say from 1 to 10, between 1 ruinous and 10 excellent.\n"
        "Fewer days are better. Answer with SCORE: n.",
        "DEBT CONTEXT\nOutstanding balance: ${amount}\nDays overdue: {overdue}\n"
        "Creditor's target: {target_days} days",
        "DIALOG HISTORY",
        "CREDITOR UTTERANCE TO SCORE",
        "Give your score as SCORE: n.",
    ),
}
_MARK = re.compile(r"PASTE:[^\n\"]*")


def paste_texts(folder: Path) -> Path:
    """A copy of the pack in `folder`, all marks replaced."""
    shutil.copytree(PAPER_PACK, folder)
    for name, texts in PASTED.items():
        path = folder / name
        content = path.read_text(encoding="utf-8")
        for text in texts:
            assert _MARK.search(content), f"{name} has fewer marks than texts"
            content = _MARK.sub(text, content, count=1)
        path.write_text(content, encoding="utf-8")
    path = folder / "emotions.toml"
    block = re.sub(
        r"PASTE: Appendix P\.4, (\w+)",
        r"Reply in the manner of \1. Let it show.\\nPress on.",
        path.read_text(encoding="utf-8"),
    )
    path.write_text(block, encoding="utf-8")
    return folder
