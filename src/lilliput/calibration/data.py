# SPDX-License-Identifier: Apache-2.0
"""Calibration text as token ids.

Chunks are cut as llama.cpp's llama-imatrix cuts them: all text as one stream, a remainder dropped, and where the
tokenizer adds BOS, the first token of every chunk replaced by it. Chats go through the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lilliput.arrays import IntArray
from lilliput.calibration.builtin_mix import builtin_documents
from lilliput.calibration.document import Chat, Document, document_from_record
from lilliput.errors import CalibrationError, TextError, TokenizerError
from lilliput.text.chat_template import apply_chat_template
from lilliput.text.documents import SEPARATOR, is_json_lines, read_json_lines, read_text
from lilliput.text.tokenizer import Tokenizer
from lilliput.text.vocabulary import Vocabulary

# Characters that one token spells on average at the very most; only decides how much text is read for `tokens`.
LONGEST_TOKEN = 16


def calibration_chunks(
    vocabulary: Vocabulary,
    texts: Sequence[Path],
    *,
    chunk_size: int = 512,
    tokens: int | None = None,
    has_ends: bool = False,
) -> IntArray:
    """Token ids [chunks, chunk_size]; one shorter chunk where there is less text than that.

    texts: files; none means the built-in mix.  tokens: stop after this many.  has_ends: the last token of every chunk
    is the one that ends a text, as encoders see it.
    Raises CalibrationError for text without tokens, TextError for a file that cannot be read.
    """
    if chunk_size < 1 or (tokens is not None and tokens < 1):
        raise CalibrationError(f"chunk size {chunk_size}, tokens {tokens}: both must be at least 1")
    documents = _merged(document for path in texts for document in _read_file(path)) if texts else builtin_documents()
    bos = vocabulary.bos_token_id if vocabulary.add_bos_token else None
    ids: list[int] = [] if bos is None else [bos]
    tokenizer = Tokenizer(vocabulary)
    for document in documents:
        ids.extend(_document_ids(tokenizer, vocabulary, document, None if tokens is None else tokens - len(ids)))
        if tokens is not None and len(ids) >= tokens:
            del ids[tokens:]
            break
    if len(ids) <= int(bos is not None):
        named = ", ".join(path.name for path in texts) or "built-in mix"
        raise CalibrationError(f"{named}: no tokens in this text; give at least {chunk_size} tokens of text")
    length = min(chunk_size, len(ids))
    chunks = np.array(ids[: len(ids) // length * length], dtype=np.int32).reshape(-1, length)
    if bos is not None:
        chunks[:, 0] = bos
    if has_ends and vocabulary.add_eos_token and vocabulary.eos_token_id is not None and length > 1:
        chunks[:, -1] = vocabulary.eos_token_id
    return chunks


def _read_file(path: Path) -> list[Document]:
    """Raises CalibrationError for a file that is missing, empty, or of an unknown shape."""
    try:
        if not is_json_lines(path):
            return [read_text(path)]
        documents = [document_from_record(record, f"{path}: line {line}") for line, record in read_json_lines(path)]
    except TextError as error:
        raise CalibrationError(str(error)) from error
    if not any(isinstance(document, Chat) or document.strip() for document in documents):
        raise CalibrationError(f"{path}: holds no text")
    return documents


def _merged(documents: Iterable[Document]) -> Iterator[Document]:
    """Neighbouring texts as one text, joined by a blank line; chats as they are."""
    texts: list[str] = []
    for document in documents:
        if isinstance(document, str):
            texts.append(document)
            continue
        if texts:
            yield SEPARATOR.join(texts) + SEPARATOR
            texts = []
        yield document
    if texts:
        yield SEPARATOR.join(texts)


def _document_ids(tokenizer: Tokenizer, vocabulary: Vocabulary, document: Document, limit: int | None) -> list[int]:
    """Ids without BOS or EOS of the tokenizer's own; at least `limit` of them where the document has as many."""
    if isinstance(document, Chat):
        return tokenizer.encode(_chat_text(vocabulary, document), add_special=False, parse_special=True)
    if limit is not None and len(document) > limit * LONGEST_TOKEN:
        ids = tokenizer.encode(document[: limit * LONGEST_TOKEN], add_special=False)
        if len(ids) >= limit:
            return ids
    return tokenizer.encode(document, add_special=False)


def _chat_text(vocabulary: Vocabulary, chat: Chat) -> str:
    """The chat as the model's template writes it; without one, the messages as paragraphs.

    Raises CalibrationError where the template refuses the chat of a user's file.
    """
    if vocabulary.chat_template is not None:
        try:
            return apply_chat_template(vocabulary, chat.messages, chat.tools or None)
        except TokenizerError as error:
            # Many templates know no tools or no system message; the built-in mix must still serve those models.
            if not chat.is_builtin:
                raise CalibrationError(f"{chat.where}: {error}") from error
    return SEPARATOR.join(str(message["content"]) for message in chat.messages) + SEPARATOR
