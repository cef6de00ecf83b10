"""Special tokens in quoted texts, broken up: a server reads them wherever they are spelled, and cannot be told not to.

Which tokens a served model has is not known here, so all that look like one of the known formats are taken for one. In
an engine of this process nothing is altered (`cai.engines.markers`); here a space goes in, and is counted.
"""

import re
from dataclasses import replace
from typing import Final

from cai.engines.base import EnginePrompt
from cai.types import Turn

__all__ = ["inert"]

_MARKER: Final = re.compile(
    r"<[|\uff5c][^<>\n]{1,40}[|\uff5c]>"  # ChatML, Llama 3, Phi, GPT; DeepSeek with its wide bars
    r"|<\|[^\s<>|]{1,40}>|<[^\s<>|]{1,40}\|>|\[\|[^\[\]\n|]{1,40}\|\]"  # a bar on one side; EXAONE
    r"|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|THINK|ARGS|CALL_ID"  # Mistral
    r"|IMG(?:_BREAK|_END)?|PREFIX|MIDDLE|SUFFIX|BOS|EOS|CLS|SEP|PAD|UNK|MASK|[gs]MASK)\]"  # BERT, GLM
    r"|\]~!?b[\[\]]|\[e~\[|</?(?:seed|minimax):\w+>"  # MiniMax, Seed
    r"|<(?i:unused|special|reserved|extra_id|placeholder)(?i:_special)?(?i:_token)?_?\d+>"  # Gemma, Nemotron, T5
    r"|</?(?:start|end|begin)_?of_?\w+>|</?(?:tool_(?:calls?|response)|fim_\w+|repo_?name|file_sep|image)>"
    r"|</?(?i:(?:s|bos|eos|pad|unk|cls|sep|mask|sop|eop|eod|eot|think)(?:_token)?)>"  # Llama 2, GLM, Qwen, ...
)


def inert(prompt: EnginePrompt) -> tuple[EnginePrompt, int]:
    """The prompt with a space before the last character of every marker in its quoted texts; how many there are."""
    texts = [*(turn.content for turn in prompt.turns), prompt.text]
    number = 0
    for place, start, end in sorted(prompt.quoted, reverse=True):  # from the back: places before stay where they are
        broken, count = _MARKER.subn(lambda found: f"{found[0][:-1]} {found[0][-1]}", texts[place][start:end])
        texts[place] = texts[place][:start] + broken + texts[place][end:]
        number += count
    if not number:
        return prompt, 0
    turns = tuple(Turn(turn.role, text) for turn, text in zip(prompt.turns, texts, strict=False))
    return replace(prompt, turns=turns, text=texts[-1], quoted=()), number
