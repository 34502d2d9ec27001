# SPDX-License-Identifier: Apache-2.0
"""`lilliput push`: a finished file or folder to the hub, with its card and ledger, in one commit.

The card is a given one, or measured against the original now, or says that nothing was measured; one made here becomes
a part of the card that the repository has. Nothing is uploaded that our own readers cannot open.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lilliput.architectures.architecture import Json
from lilliput.checkpoints.model_source import ModelSource
from lilliput.containers import FOLDERS, open_model
from lilliput.errors import PublishError
from lilliput.evaluation.model_logits import EvaluationOptions
from lilliput.recipes.ledger import ledger_path
from lilliput.recipes.making import found_ledger, making
from lilliput.reporting import DEFAULT_TOKENS, ReportOptions, report
from lilliput.reports.card import card as measured_card
from lilliput.reports.joined_cards import as_part, joined_cards
from lilliput.reports.plain_card import PlainCard, plain_card
from lilliput.workflows import PathLike, Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD, ORIGINAL_CARD = "README.md", "README.original.md"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PART = re.compile(r"(?P<stem>.*)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How to push.

    private: a new repository is.  revision: branch, made where it is missing; None means main.
    card: a finished README.md.  base: the original, to measure against for a card.  text: what to measure on.
    dry_run: upload nothing.
    """

    private: bool = False
    revision: str | None = None
    card: Path | None = None
    base: PathLike | None = None
    text: Path | None = None
    message: str | None = None
    dry_run: bool = False
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """One file of the commit. path: its name in the repository.  source: None for the card made here."""

    path: str
    bytes: int
    source: Path | None = None


@dataclass(frozen=True, slots=True)
class PushResult:
    """What was, or would be, uploaded. commit: its url; None for a dry run."""

    repository: str
    revision: str
    files: tuple[Upload, ...]
    card: str
    commit: str | None = None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(upload.bytes for upload in self.files)

    def to_json(self) -> dict[str, Json]:
        """The contract of `lilliput push --json`."""
        files: list[Json] = [{"path": upload.path, "bytes": upload.bytes} for upload in self.files]
        return {
            "repository": self.repository,
            "revision": self.revision,
            "files": files,
            "bytes": self.bytes,
            "commit": self.commit,
        }


def push(
    path: PathLike, repository: str, options: PushOptions | None = None, *, progress: Progress | None = None
) -> PushResult:
    """Upload a model file (with all parts of a split) or folder, its ledger and a card.

    progress: of measuring for the card, called with (windows done, windows in all).
    Raises PublishError and what opening and measuring raise, one line each.
    """
    options = options or PushOptions()
    if _REPOSITORY.fullmatch(repository) is None:
        raise PublishError(f"{repository}: not a repository id; write organization/name")
    target = Path(path)
    if not target.exists():
        raise PublishError(f"{target}: no such file or folder")
    source = open_model(target)
    try:
        uploads = _uploads(target, source)
        card = _card(target, source, uploads, options, progress)
    finally:
        source.close()
    files = tuple(sorted((_kept(upload) for upload in uploads), key=lambda item: item.path))
    result = _with_card(PushResult(repository, options.revision or "main", files, ""), card)
    return (
        result
        if options.dry_run
        else _committed(result, options, options.message or f"Upload {target.name} with lilliput")
    )


def _with_card(result: PushResult, card: str) -> PushResult:
    others = [upload for upload in result.files if upload.path != CARD]
    return replace(result, files=(Upload(CARD, len(card.encode())), *others), card=card)


def _uploads(target: Path, source: ModelSource) -> tuple[Upload, ...]:
    """Files and their names in the repository."""
    if target.is_dir():
        paths = sorted(path for path in target.iterdir() if path.is_file() and not path.name.startswith("."))
        _check_folder(target)
    else:
        paths = list(source.weight_files)
    split = _PART.fullmatch(target.name)
    ledger = ledger_path(target.with_name(f"{split['stem']}.gguf") if split else target)
    if ledger.is_file():
        paths.append(ledger)
    return tuple(Upload(path.name, path.stat().st_size, path) for path in paths)


def _kept(upload: Upload) -> Upload:
    """A folder's own card, which is the original's, under another name beside the new one."""
    return replace(upload, path=ORIGINAL_CARD) if upload.path == CARD else upload


def _check_folder(target: Path) -> None:
    """Only folders that hold a model and nothing else. Raises PublishError naming what is in the way."""
    inside = [path.name for path in target.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if inside:
        raise PublishError(f"{target}: holds the folder '{inside[0]}', which is not uploaded; move it elsewhere first")


def _card(
    target: Path, source: ModelSource, uploads: tuple[Upload, ...], options: PushOptions, progress: Progress | None
) -> str:
    if options.card is not None:
        try:
            return options.card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise PublishError(f"{options.card}: the card cannot be read: {failure}") from failure
    split = _PART.fullmatch(target.name)
    # Files of folders have the same names in every push: the last folder is the one that is there.
    key = "" if target.is_dir() else f"{split['stem']}.gguf" if split else target.name
    return as_part(_own_card(target, source, uploads, options, progress), key, key or target.name)


def _own_card(
    target: Path, source: ModelSource, uploads: tuple[Upload, ...], options: PushOptions, progress: Progress | None
) -> str:
    """Measured where there is an original to measure against."""
    if options.base is not None:
        measuring = EvaluationOptions(tokens=DEFAULT_TOKENS, threads=options.threads)
        chosen = ReportOptions(options.text, measuring=measuring, command=f"lilliput push {target.name}")
        return measured_card(report(options.base, [target], chosen, progress=progress))
    ledger, _ = found_ledger(source)
    formats = Counter(header.format.name for header in source.headers.values())
    general = source.provenance.general
    container = next((folder.name for folder in FOLDERS if target.is_dir() and folder.recognises(target)), "")
    shown = PlainCard(
        name=str(general.get("name") or target.name),
        container="huggingface" if container else source.container,
        general=general,
        files={upload.path: upload.bytes for upload in uploads},
        formats=formats,
        making=making(source, ledger),
    )
    return plain_card(shown)


def _committed(result: PushResult, options: PushOptions, message: str) -> PushResult:
    """Make the repository and branch where they are missing, join the cards, upload, commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi(library_name="lilliput")
    with _one_line(result.repository):
        hub.create_repo(result.repository, private=options.private or None, exist_ok=True)
        if options.revision is not None and options.revision != "main":
            hub.create_branch(result.repository, branch=options.revision, exist_ok=True)
        earlier = "" if options.card is not None else _card_there(hub, result)
    if earlier:
        try:
            result = _with_card(result, joined_cards(earlier, result.card))
        except ValueError as failure:
            raise PublishError(
                f"{result.repository}: the YAML block of its {CARD} cannot be read ({_first_line(failure)}); mend it "
                "there, or give --card FILE to replace it"
            ) from failure
    operations = [
        CommitOperationAdd(upload.path, str(upload.source) if upload.source is not None else result.card.encode())
        for upload in result.files
    ]
    with _one_line(result.repository):
        done = hub.create_commit(
            result.repository, operations, commit_message=message, revision=options.revision, num_threads=2
        )
    return replace(result, commit=str(done.commit_url))


def _card_there(hub: HfApi, result: PushResult) -> str:
    """The repository's card; empty where it has none."""
    from huggingface_hub.errors import EntryNotFoundError

    # Not into the cache, which would grow by every state of the card.
    with TemporaryDirectory() as folder:
        try:
            path = hub.hf_hub_download(result.repository, CARD, revision=result.revision, local_dir=folder)
        except EntryNotFoundError:
            return ""
        return Path(path).read_text(encoding="utf-8", errors="replace")


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """Every failure of the network or the hub as one line."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as failure:
        raise PublishError(f"{repository}: no token; set HF_TOKEN or run `hf auth login`") from failure
    except HfHubHTTPError as failure:
        status = getattr(failure.response, "status_code", None)
        if status in (401, 403) or isinstance(failure, GatedRepoError):
            raise PublishError(
                f"{repository}: the hub refused ({status}); set HF_TOKEN to one that may write there"
            ) from failure
        raise PublishError(f"{repository}: upload failed: {_first_line(failure)}") from failure
    except Exception as failure:  # transport errors of the HTTP library, and what the hub's client wraps them in
        raise PublishError(f"{repository}: upload failed: {_first_line(failure)}") from failure


def _first_line(failure: Exception) -> str:
    lines: list[str] = []
    for each in (failure, failure.__cause__):
        line = str(each or "").strip().partition("\n")[0]
        # What wraps an error often repeats it.
        if line and not any(line in earlier for earlier in lines):
            lines.append(line)
    return ": ".join(lines) or type(failure).__name__
