"""A run on one of DomainBed's sets, in miniature: its domains, its split, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

from miniatures import miniature, write_folder
from small_runs import small_config

from steppe import Trainer
from steppe.cli import run
from steppe.data import OfficialFolders, split_indices


def test_a_run_holds_out_a_domain_by_its_name(tmp_path: Path) -> None:
    official = miniature("officehome", classes=3, each=10)
    dataset = OfficialFolders(official, write_folder(official, tmp_path / "office_home"))
    config = small_config("officehome", held_out="real-world", steps=2, eval_every=2)
    result = Trainer(config, out=tmp_path / "run", dataset=dataset).fit()
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["dataset"] == "officehome"
    assert set(content["counts"]) == {"art", "clipart", "product", "real-world"}
    kept, out = split_indices(30, 0, 3)
    assert content["counts"]["real-world"] == {"in": len(kept), "out": len(out), "all": 30}
    assert 0 <= result.held_out_accuracy <= 1


def test_a_subset_is_trained_on_as_it_is(tmp_path: Path) -> None:
    root = write_folder(miniature("pacs", classes=7, each=5), tmp_path / "PACS")
    options = ["--backbone", "test_resnet", "--no-pretrained", "--no-frozen-batch-norm", "--image-size", "32"]
    options += ["--batch-per-domain", "3", "--steps", "2", "--eval-every", "2"]
    arguments = ["train", f"folder:{root}", "--held-out", "art_painting", "--out", str(tmp_path / "runs"), *options]
    assert run(arguments) == 0
    (path,) = (tmp_path / "runs").rglob("result.json")
    content = json.loads(path.read_text())
    assert (content["dataset"], content["dataset_spec"]) == ("PACS", f"folder:{root}")
