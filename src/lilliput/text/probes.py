# SPDX-License-Identifier: Apache-2.0
"""Texts on which tokenizers differ: what two tokenizers agree on here, they agree on in practice."""

# ruff: noqa: RUF001  ambiguous characters are the point
from __future__ import annotations

_DIGITS = tuple("1234567890"[:count] for count in range(1, 11))
_CONTRACTIONS = (
    "I've been told he's there, we're sure you'll make it, I'd say I'm not, don't",
    "I'VE BEEN TOLD HE'S THERE, WE'RE SURE YOU'LL MAKE IT, I'D SAY I'M NOT, DON'T",
    "l'sauna d'tour o'rest a'venue i'llama k'mart x'D'LLL",
    "'Ve 'S 'Re 'lL 'd 'M 'T 'sat 'under 'velvet",
    "it’s the dog’s ‘quote’ O'Neill rock'n'roll l'homme",
)
_NUMBERS = (
    *_DIGITS,
    "a  12   345\t\t6 \n 7\n\n  8 -9 +10 $11",
    *(f"x{digits} {digits}y ({digits})" for digits in _DIGITS[1:7]),
    "3.14159 1,000,000 1e-10 0xDEADBEEF v2.0.1 2024-01-31 12:34:56 ½ ² Ⅳ ٣٤٥ ४२",
)
_SPACES = (
    *(" " * count + "x" for count in range(1, 9)),
    "a  b   c    d     e",
    "trailing   ",
    "\n",
    "\n\n\n",
    " \n  \n\n \n",
    "a\n\n  b\n \tc\r\nd\r\n\r\ne",
    "\t\t\tx\t y",
    "x \n",
    "x.\n\n\ny!\r\n",
    "line one\n    indented\n        twice\n\tback",
    "a\u00a0b\u2003c\u3000d\u200be\u0085f",
)
_PUNCTUATION = (
    "!!!!!! ?????? ...... ------ ====== ``` \"\"\" ''' ~~~ $$$ %%% ^^^ &&& *** ((( ))) [[[ ]]] {{{ }}}",
    "Hello, world! (yes) [no] {maybe} <tag> </tag> a/b\\c a_b__c___d #hash @user $5.00 50% a&b x+y=z <= >= != -> =>",
    "path/to/file.py:12 https://example.org/?q=1&r=%20#top user@example.org",
    "..., ;;: !? .a ,b ;c -d _e /f",
    "word/\n// comment\n/* block */\n/path\n",
)
_SCRIPTS = (
    "café naïve Ångström Straße Œuvre Łódź İstanbul",
    "Нещо на Български ПРИВЕТ",
    "我想在apple工作1314151天～。，！「引用」",
    "こんにちは世界 カタカナ 한국어 문장입니다.",
    "السلام عليكم ، ؟ שלום עולם",
    "हिन्दी भाषा ภาษาไทย កាន់តែពិសេស",
    "Ελληνικά Cửa Việt",
    "🚀 😶\u200d🌫\ufe0f 🦙.cpp ✅✅ 🇪🇺 👩\u200d💻",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ → ∞ ≠ √2 €5 £ ™ ──│",
)
_WORDS = (
    "Hello",
    " Hello",
    "Hello World",
    "The quick brown fox jumps over the lazy dog.",
    "camelCase PascalCase SCREAMING_CASE snake_case kebab-case XMLHttpRequest iPhone15Pro",
    "def f(self, x: int = 3) -> None:\n    return self.y[x] + 0.5  # note\n",
    '{"key": [1, 2.5, null, true], "text": "a\\nb"}',
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 42); return 0; }',
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\n* item\n1. item\n",
    "w048 7tuijk dsdfhu",
)
PROBES: tuple[str, ...] = (*_WORDS, *_CONTRACTIONS, *_NUMBERS, *_SPACES, *_PUNCTUATION, *_SCRIPTS)
# Text that Unicode normalization changes; counted apart, for llama.cpp has no such step.
UNNORMALIZED_PROBES: tuple[str, ...] = (
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "ﬁne ① Å ＡＢＣ",
)
