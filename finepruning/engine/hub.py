"""Models on the Hugging Face Hub: a repository that holds a model directory and its card."""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finepruning.engine.card import render_card
from finepruning.errors import ArgumentError, HubError
from finepruning.sparse.storage import CONFIG, WEIGHTS, StoredModel, save

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REPORT = "report.json"


def is_repository(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is ``user/name`` and not something that exists here."""
    return isinstance(path, str) and _REPOSITORY.fullmatch(path) is not None and not os.path.lexists(path)


def pull(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download the two files of a model, or find them in the Hub's cache.

    Args:
        repo_id: ``user/name``. revision: branch, tag or commit. token: for private models; None for the one
            that is logged in.

    Raises:
        ArgumentError: huggingface_hub is not installed. HubError: it cannot be had.
    """
    hub = _hub(f"{repo_id} is no directory here; to load it from the Hugging Face Hub")
    try:
        folder = hub.snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS]
        )
    except Exception as error:  # network, authorisation and cache failures come in many types
        where = repo_id if revision is None else f"{repo_id} at {revision}"
        raise HubError(
            f"{where} is no directory here and could not be loaded from the Hugging Face Hub "
            f"({_reason(error)}); check the name and the revision, or log in with: hf auth login"
        ) from error
    return Path(folder)


def push(
    stored: StoredModel,
    repo_id: str,
    *,
    report: Mapping[str, Any] | str | os.PathLike[str] | None,
    license: str | None,
    private: bool | None,
    revision: str | None,
    commit_message: str | None,
    token: str | None,
) -> str:
    """Upload a model directory with a card; the arguments are those of `SparseModel.push_to_hub`."""
    if _REPOSITORY.fullmatch(repo_id) is None:
        raise ArgumentError(f"repo_id is {repo_id!r}; it must be user/name, such as 'anna/pruned-photos'")
    hub = _hub("push_to_hub needs the package huggingface_hub")
    facts = _report(report)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        save(stored, folder)
        card = render_card(stored, folder, repo_id, report=facts, license=license)
        (folder / "README.md").write_text(card, encoding="utf-8")
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=str(folder),
                revision=revision,
                commit_message=commit_message or "Upload a pruned model",
            )
        except Exception as error:  # network and authorisation failures come in many types
            raise HubError(
                f"{repo_id} could not be written to the Hugging Face Hub ({_reason(error)}); "
                "log in with: hf auth login"
            ) from error
    return str(commit.commit_url)


def _report(report: Mapping[str, Any] | str | os.PathLike[str] | None) -> Mapping[str, Any] | None:
    if report is None or isinstance(report, Mapping):
        return report
    path = Path(report)
    path = path / REPORT if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"report: {path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ArgumentError(f"report: {path} is not a run's report.json")
    return content


def _hub(purpose: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ArgumentError(f"{purpose}; install it with: pip install 'finepruning[hub]'") from None


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
