"""Prompts that a chat template surrounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._common import Text

MARK = "\ue000"
"""A character that no template writes."""


def chat_text(tokenizer: Any, limit: int, render: Callable[[str], str]) -> Text:
    """The tokens that are left for a prompt: `limit` less those of what `render` writes before it.

    What stands after it gives way first, as these texts are cut at the end.
    """
    before = render(MARK).partition(MARK)[0]
    return Text(tokenizer, max(limit - len(tokenizer(before).input_ids), 1))
