# SPDX-License-Identifier: Apache-2.0
"""Pre-tokenizers: how text is cut into pieces before byte-level BPE merges inside each piece.

A GGUF names its pre-tokenizer (`tokenizer.ggml.pre`). The name stands for split rules that are applied in order, each
to the pieces that the rule before it left: every match becomes a piece, and so does what lies between matches. Rules
are the expressions of the models' own tokenizer.json files, in Oniguruma's dialect. Where llama.cpp approximates an
expression (upper and lower case letters outside ASCII in tekken and gpt-4o), the model's own is used here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from lilliput.errors import TokenizerError
from lilliput.text.vocabulary import WHAT_STILL_WORKS

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s+(?!\S)|\s+"
LINES_AND_SPACES = rf"\s*[\r\n]+|{SPACES}"
GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{SPACES}"
PUNCTUATION_LINE = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
LLAMA3 = rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{PUNCTUATION_LINE}|{LINES_AND_SPACES}"
QWEN2 = rf"{CONTRACTION}|{WORD}|\p{{N}}|{PUNCTUATION_LINE}|{LINES_AND_SPACES}"
QWEN35 = (
    rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    rf"|{LINES_AND_SPACES}"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CAMEL_LOWER = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+"
CAMEL_UPPER = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
PUNCTUATION_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
TEKKEN = rf"{CAMEL_LOWER}|{CAMEL_UPPER}|\p{{N}}|{PUNCTUATION_PATH}|{LINES_AND_SPACES}"
GPT4O = rf"{CAMEL_LOWER}{CONTRACTION}?|{CAMEL_UPPER}{CONTRACTION}?|\p{{N}}{{1,3}}|{PUNCTUATION_PATH}|{LINES_AND_SPACES}"
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    rf"|{LINES_AND_SPACES}"
)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
# A class of cased letters as DeepSeek LLM's tokenizer.json lists them; wider than \p{L} in nothing, narrower in much.
CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
DEEPSEEK_IDEOGRAPHS = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{CJK}"
)
AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
CASCADED_SPACES = (
    "|".join(rf"\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    r"""Split rules under one of llama.cpp's names.

    name: canonical name, the one to write.  aliases: names that llama.cpp treats alike.
    splits: expressions applied in order.  ignores_merges: a piece that is a token is taken whole, merges or not.
    adds_bos: what a file without `tokenizer.ggml.add_bos_token` means.
    cuts_at_newlines: whether a piece never spans "x\nA" (a line break between a non-space and an ASCII letter), so
        that long text may be encoded in parts.
    """

    name: str
    splits: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    ignores_merges: bool = False
    adds_bos: bool = False
    cuts_at_newlines: bool = True

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The rules as an object of the `tokenizers` library, the byte alphabet included."""
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


# Order matters to recognition: of two that behave alike the earlier name is written.
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "llama-bpe",
        (LLAMA3,),
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        ignores_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        "qwen2", (QWEN2,), ("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "grok-2", "hunyuan", "solar-open")
    ),
    PreTokenizer("stablelm2", (QWEN2,)),
    PreTokenizer("qwen35", (QWEN35,)),
    PreTokenizer(
        "gpt-2",
        (GPT2,),
        (
            *("phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum"),
            *("modern-bert", "exaone4", "jina-v1-en", "jina-v2-code", "roberta-bpe"),
        ),
    ),
    PreTokenizer("mpt", (GPT2,), ("olmo", "jais", "trillion", "granite-docling")),
    PreTokenizer("smollm", (r"\p{N}", GPT2)),
    PreTokenizer(
        "starcoder", (r"\p{N}", GPT2), ("refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")
    ),
    PreTokenizer("dbrx", (LLAMA3,), ("smaug-bpe",)),
    PreTokenizer("chatglm-bpe", (LLAMA3,)),
    PreTokenizer("glm4", (LLAMA3,), ("glm5",), ignores_merges=True),
    PreTokenizer("tekken", (TEKKEN,), ignores_merges=True, adds_bos=True),
    PreTokenizer("gpt-4o", (GPT4O,), ("llama4", "kanana2", "talkie", "minimax-m2")),
    PreTokenizer("granite-embed-multi-97m", (GPT4O,), ignores_merges=True),
    PreTokenizer("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), ("cohere2moe",)),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", CJK, DEEPSEEK_V3), ("hunyuan-dense", "joyai-llm", "hy_v4")),
    PreTokenizer(
        "spark2_5",
        (
            r"\p{N}{1,3}",
            CJK,
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            rf"| ?[\p{{P}}\p{{S}}]+|[\r\n]|{SPACES}",
            r"\p{N}",
        ),
    ),
    PreTokenizer(
        "deepseek-llm",
        (
            r"[\r\n]",
            rf"\s?[{CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            DEEPSEEK_IDEOGRAPHS,
            r"\p{N}+",
        ),
    ),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_IDEOGRAPHS, r"\p{N}")),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]")),
    PreTokenizer("bloom", (BLOOM,), ("poro-chat", "gpt3-finnish")),
    PreTokenizer("viking", (BLOOM, r"\p{N}")),
    PreTokenizer("jais-2", (rf"{CONTRACTION}|{WORD}|\p{{N}}{{1,3}}|{PUNCTUATION_LINE}|\s*[\r\n]+|{CASCADED_SPACES}",)),
    PreTokenizer("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))"), cuts_at_newlines=False),
    PreTokenizer(
        "bailingmoe",
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
            rf"|{SPACES}",
        ),
        ("bailingmoe2", "llada-moe"),
    ),
    PreTokenizer("seed-coder", (rf"{CONTRACTION}|{WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{LINES_AND_SPACES}",)),
    PreTokenizer("ufakzeka", (rf"{WORD}|\p{{N}}|{PUNCTUATION_LINE}|{LINES_AND_SPACES}",)),
    PreTokenizer("laguna", (r"[^\n]+|[\n]+", QWEN2)),
    PreTokenizer(
        "exaone-moe",
        (
            rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{SPACES}",
        ),
    ),
    PreTokenizer(
        "minicpm5",
        (r"\p{N}{1,3}", rf"{CONTRACTION}|{WORD}|\p{{N}}+|{PUNCTUATION_LINE}|{LINES_AND_SPACES}"),
        ignores_merges=True,
    ),
    PreTokenizer(
        "youtu",
        (
            YOUTU_SCRIPTS,
            rf"{CAMEL_LOWER}{CONTRACTION}?|{CAMEL_UPPER}{CONTRACTION}?|\p{{N}}|{PUNCTUATION_PATH}|{LINES_AND_SPACES}",
        ),
        ignores_merges=True,
    ),
    PreTokenizer("afmoe", (r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))", AFMOE_SCRIPTS, DEEPSEEK_V3)),
    PreTokenizer(
        "chameleon",
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        adds_bos=True,
    ),
    PreTokenizer("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"), ("",)),
)

_BY_NAME = {name: item for item in PRE_TOKENIZERS for name in (item.name, *item.aliases)}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The split rules that a GGUF's `tokenizer.ggml.pre` names. Raises TokenizerError."""
    found = _BY_NAME.get(name)
    if found is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre: '{name}' is not known here; known are {', '.join(sorted(filter(None, _BY_NAME)))}. "
            + WHAT_STILL_WORKS
        )
    return found


def adds_bos_by_default(name: str) -> bool:
    """What a file of that pre-tokenizer means where it does not say; False for unknown names, which may be read."""
    found = _BY_NAME.get(name)
    return found is not None and found.adds_bos
