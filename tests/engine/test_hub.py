"""Publishing and loading through the Hugging Face Hub, against a Hub that is a folder on this disk.

What is replaced are the functions of huggingface_hub that would use the network; they keep what they get
in the layout of the Hub's cache, where a snapshot consists of links to blobs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from finepruning import ArgumentError, HubError, SparseModel

REPO = "anna/pruned-photos"


class FakeHub(ModuleType):
    """`huggingface_hub`, as far as it is used: repositories are folders, one a branch."""

    def __init__(self, root: Path) -> None:
        super().__init__("huggingface_hub")
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def HfApi(self, token: str | None = None) -> FakeHub:  # noqa: N802
        self.calls.append(("HfApi", {"token": token}))
        return self

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append(("create_repo", {"private": private}))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, repo_id: str, *, branch: str, exist_ok: bool) -> None:
        (self.root / repo_id / branch).mkdir(exist_ok=exist_ok)

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str
    ) -> SimpleNamespace:
        target = self.root / repo_id / (revision or "main")
        shutil.copytree(folder_path, target, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(
        self, repo_id: str, *, revision: str | None, token: str | None, allow_patterns: list[str]
    ) -> str:
        source = self.root / repo_id / (revision or "main")
        if not source.is_dir():
            raise OSError(f"404 Client Error: no {repo_id} at {revision}\nRequest ID: 1")
        self.calls.append(("snapshot_download", {"token": token}))
        snapshot = self.root / "cache" / "snapshot"
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        for name in allow_patterns:
            (snapshot / name).symlink_to(source / name)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture(scope="module")
def model() -> SparseModel:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()
    with torch.no_grad():
        network[0].weight[torch.rand_like(network[0].weight) < 0.5] = 0
        network[3].weight[torch.rand_like(network[3].weight) < 0.9] = 0
    return SparseModel.from_dense(
        network,
        torch.zeros(1, 3, 8, 8),
        classes=["a|b", "naïve", "c"],
        preprocessing={"image_size": 8, "resize": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        provenance={"model": "tiny", "target_density": 0.1},
    )


def report_of(model: SparseModel) -> dict[str, Any]:
    weights = [tensor for tensor in model.to_dense().values() if tensor.dim() > 1]
    nonzero = sum(int(weight.count_nonzero()) for weight in weights)
    return {
        "classes": list(model.classes or ()),
        "density": nonzero / sum(weight.numel() for weight in weights),
        "sparse_accuracy": 0.9125,
        "dense_accuracy": 0.95,
        "images": {"test": 80},
        "bytes_dense": 123_456,
    }


def test_what_was_pushed_comes_back(model: SparseModel, hub: FakeHub) -> None:
    assert model.push_to_hub(REPO, private=True, token="secret") == f"https://hub/{REPO}/commit/1"
    assert hub.calls == [("HfApi", {"token": "secret"}), ("create_repo", {"private": True})]
    loaded = SparseModel.from_pretrained(REPO, token="other")
    assert hub.calls[-1] == ("snapshot_download", {"token": "other"})
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded(x), model(x))
    assert loaded.classes == model.classes


def test_a_revision_is_another_model(model: SparseModel, hub: FakeHub) -> None:
    model.push_to_hub(REPO)
    SparseModel.from_dense(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4)).push_to_hub(REPO, revision="small")
    assert SparseModel.from_pretrained(REPO).input_shape == (3, 8, 8)
    assert SparseModel.from_pretrained(REPO, revision="small").input_shape == (3, 4, 4)
    with pytest.raises(HubError, match=r"anna/pruned-photos at old is no directory here .*\(404 .*at old\)"):
        SparseModel.from_pretrained(REPO, revision="old")


def test_the_card_states_the_models_own_figures(model: SparseModel, hub: FakeHub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    report = report_of(model)
    (run / "report.json").write_text(json.dumps(report))
    model.push_to_hub(REPO, report=run, license="apache-2.0")
    pushed = hub.root / REPO / "main"
    assert sorted(file.name for file in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (pushed / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: finepruning\n")
    size, kept = 8 * 27 + 3 * 288, round(report["density"] * (8 * 27 + 3 * 288))
    files = sum((pushed / name).stat().st_size for name in ("config.json", "model.safetensors"))
    for expected in (
        'license: "apache-2.0"',
        "# pruned-photos",
        f"{kept:,} of {size:,} (density {report['density']:.4f})",
        f"{files:,} bytes",
        "91.25 % of 80 images",
        "95.00 %",
        "123,456 bytes",
        'from_pretrained("anna/pruned-photos")',
        '["a|b", "naïve", "c"]',
        '"target_density": 0.1',
    ):
        assert expected in card
    assert card.count("\n| `") == 2  # one row a layer


def test_a_card_without_a_report_claims_no_accuracy(model: SparseModel, hub: FakeHub) -> None:
    model.push_to_hub(REPO)
    card = (hub.root / REPO / "main" / "README.md").read_text(encoding="utf-8")
    assert "accuracy" not in card
    assert "license" not in card


def test_a_report_of_another_model_is_refused(model: SparseModel, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="report is of another model"):
        model.push_to_hub(REPO, report=report_of(model) | {"density": 0.5})
    with pytest.raises(ArgumentError, match=r"not the content of a run's report\.json"):
        model.push_to_hub(REPO, report={"classes": []})
    with pytest.raises(ArgumentError, match="cannot be read"):
        model.push_to_hub(REPO, report=tmp_path / "nowhere")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["photos", "a/b/c", "/a/b", "../x", "a b/c", ""])
def test_names_that_are_no_repositories(name: str, model: SparseModel, hub: FakeHub) -> None:
    with pytest.raises(ArgumentError, match="must be user/name"):
        model.push_to_hub(name)
    assert hub.calls == []


def test_what_lies_here_is_not_looked_up(model: SparseModel, hub: FakeHub, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "runs" / "model")
    assert SparseModel.from_pretrained("runs/model").input_shape == (3, 8, 8)
    with pytest.raises(ArgumentError, match="revision goes with a model on the Hub"):
        SparseModel.from_pretrained("runs/model", revision="main")
    assert hub.calls == []


def test_a_refusal_is_one_line(model: SparseModel, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("401 Client Error\n(Request ID: 1)")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(
        HubError, match=r"could not be written to the Hugging Face Hub \(401 Client Error\); log"
    ):
        model.push_to_hub(REPO)


def test_without_huggingface_hub(model: SparseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArgumentError, match=r"no directory here; .*pip install 'finepruning\[hub\]'"):
        SparseModel.from_pretrained(REPO)
    with pytest.raises(ArgumentError, match=r"pip install 'finepruning\[hub\]'"):
        model.push_to_hub(REPO)


def test_the_real_package_takes_these_arguments() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    from inspect import signature

    download = signature(hub.snapshot_download).parameters
    assert {"repo_id", "revision", "token", "allow_patterns"} <= set(download)
    assert {"repo_id", "private", "exist_ok"} <= set(signature(hub.HfApi.create_repo).parameters)
    assert {"repo_id", "branch", "exist_ok"} <= set(signature(hub.HfApi.create_branch).parameters)
    upload = signature(hub.HfApi.upload_folder).parameters
    assert {"repo_id", "folder_path", "revision", "commit_message"} <= set(upload)
