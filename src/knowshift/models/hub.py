"""Pushing a model to the hub: what can be refused before any work is done for it, and one commit.

``HF_ENDPOINT``, ``HF_TOKEN`` and what ``hf auth login`` has stored count, as everywhere in huggingface_hub. The token
goes to the hub alone: no message of this module holds it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from knowshift.errors import InputError, border, cause_of, printable
from knowshift.parameters.files.writing import PROVENANCE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

#: Seconds without a byte from the hub: of a question beforehand, and of an upload. Its client waits for ever.
ASKED, UPLOADED = 30.0, 300.0
#: A token of the hub, or what shortening a message has left of one.
_TOKEN = r"\bhf_\w+"
#: What a repository may hold that is not of knowshift, without being somebody's model.
HARMLESS = (".gitattributes", ".gitignore", "README.md", "LICENSE*")
#: Files of an earlier push that a loader would take in place of, or beside, those of this one.
STALE = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def check_repository(name: str, *, public: bool = False) -> None:
    """Refuse a repository to which nothing could be pushed, or whose files a push would replace.

    Args:
        name: owner/name on the hub.
        public: whether everybody may see it.

    Raises:
        InputError: no such name; no network or no valid token; a token or an account that may not write there; another
            model there; a repository that is seen by more, or by fewer, than ``public`` says.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r}: no name on the hub: {cause_of(error)}") from None
    if "/" not in name:
        raise InputError(f"{name}: no name on the hub; expected OWNER/{name}")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{name}: cannot be pushed to, since HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set")
    with _asking(f"{name}: the hub cannot be asked", ASKED) as api:
        _check_account(name, api.whoami())
        try:
            found = api.model_info(name)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return
    files = [file.rfilename for file in found.siblings or ()]
    others = [file for file in files if not any(fnmatch(file, pattern) for pattern in HARMLESS)]
    if others and PROVENANCE not in files:
        raise InputError(
            f"{name}: holds something else ({others[0]}); expected a new name, or one that knowshift has pushed to"
        )
    if public and found.private:
        raise InputError(f"{name}: is private, and --public is for a new repository; its settings make it public")
    if not public and not found.private:
        raise InputError(f"{name}: is public; expected --public, or another name")


def push(
    name: str, files: Mapping[str, Path | bytes], message: str, *, public: bool = False, shown: bool = False
) -> str:
    """Put ``files`` (by their path in the repository) there in one commit, and return the repository's URL.

    The repository is made where there is none; weights of an earlier push that are not among ``files`` are removed.

    Args:
        name: owner/name, as :func:`check_repository` has accepted it.
        message: of the commit.
        shown: whether bars of the upload are shown.

    Raises:
        InputError: the connection was lost, or the hub refused; the repository is as it was, or new and empty.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in sorted(files.items())
    ]
    with _bars(shown), _asking(f"{name}: not pushed", UPLOADED) as api:
        url = str(api.create_repo(name, private=not public, exist_ok=True))
        for path in api.list_repo_files(name):
            if path not in files and any(fnmatch(path, pattern) for pattern in STALE):
                operations.append(CommitOperationDelete(path))
        api.create_commit(name, operations, commit_message=message)
    return url


def _check_account(name: str, account: Mapping[str, Any]) -> None:
    """Refuse a token that cannot write, and an owner that the account is not.

    A fine-grained token does not say which organisations it may write to, so only the hub can tell.
    """
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise InputError(f"{name}: cannot be pushed to: this token may only read; expected one that may write")
    owner = name.split("/")[0]
    owners = [str(account.get("name")), *(str(one.get("name")) for one in account.get("orgs") or ())]
    if role == "write" and owner.casefold() not in [one.casefold() for one in owners]:
        raise InputError(f"{name}: not of this account; expected one of {', '.join(one + '/' for one in owners)}")


@contextmanager
def _asking(doing: str, seconds: float) -> Iterator[HfApi]:
    """The hub, for a block; whatever goes wrong in it is ``InputError(f"{doing}: {why}")``, without the token.

    Retries are not logged: the addresses of uploads are signed.
    """
    from huggingface_hub import HfApi, get_session, get_token

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    token = ""
    try:
        with border(doing):
            token = get_token() or ""
            if not token:
                raise InputError(f"{doing}: no token; expected HF_TOKEN to be set, or `hf auth login` before")
            if not (token.isascii() and token.isprintable()):  # a library would quote it
                raise InputError(f"{doing}: the token holds characters that no token has")
            logger.setLevel(logging.ERROR)
            session = get_session()
            waiting, session.timeout = session.timeout, seconds
            try:
                yield HfApi(token=token)
            finally:
                session.timeout = waiting
    except InputError as error:
        if error.__cause__ is None:  # of ours, and complete
            raise
        why = _why(error.__cause__)
        why = why.replace(token, "***") if token else why
        raise InputError(f"{doing}: {re.sub(_TOKEN, '***', why)}") from None
    finally:
        logger.setLevel(level)


def _why(error: BaseException) -> str:
    """What went wrong, without the addresses of requests: those of uploads are signed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = f"{error.response.status_code} {error.response.reason_phrase}".strip()
        if error.response.status_code == 401:
            return f"{status}: the token is not valid; expected HF_TOKEN to be set, or `hf auth login` before"
        return f"{status}: {printable(error.server_message)[:200]}" if error.server_message else status
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of one file among others
        return f"{cause_of(error)} {_why(error.__cause__)}"
    if type(error).__module__.startswith("httpx"):  # of the connection
        return f"{cause_of(error)} ({urlsplit(constants.ENDPOINT).hostname})"
    return cause_of(error)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Bars of huggingface_hub for a block, or none."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
