"""The pictures: which are chosen, that they are the data set's own, and what is said where there are none."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_runs import emoji_fingerprint, emoji_predictions, write_run
from PIL import Image

from steppe.data.catalog import open_dataset
from steppe.report import load_runs, summarise
from steppe.report.samples import MOST_PICTURES, Gallery, choose, gallery

LABELS = st.integers(0, 30)
ENTRIES = st.lists(
    st.fixed_dictionaries({"key": st.text(min_size=1, max_size=4), "label": LABELS, "predicted": LABELS}),
    max_size=80,
    unique_by=lambda entry: entry["key"],
)


def gallery_of(root: Path) -> Gallery:
    (comparison,) = summarise(load_runs(root)).comparisons
    return gallery(comparison, comparison.methods[0])


@given(ENTRIES, st.randoms())
def test_the_choice_depends_on_keys_and_labels_alone(entries, random) -> None:  # type: ignore[no-untyped-def]
    chosen = choose(entries)
    assert len(chosen) == min(MOST_PICTURES, len(entries))
    others = [{**entry, "predicted": 99} for entry in entries]
    random.shuffle(others)
    assert [entry["key"] for entry in choose(others)] == [entry["key"] for entry in chosen]
    counts = {
        label: sum(entry["label"] == label for entry in chosen) for label in {entry["label"] for entry in entries}
    }
    available = {label: sum(entry["label"] == label for entry in entries) for label in counts}
    open_labels = [counts[label] for label in counts if counts[label] < available[label]]
    assert not open_labels or max(counts.values()) - min(open_labels) <= 1


def test_pictures_are_those_of_the_data_set(tmp_path: Path) -> None:
    predictions = emoji_predictions("line", 0.3, 0.8)
    write_run(tmp_path, held_out="line", predictions=predictions, dataset_fingerprint=emoji_fingerprint())
    found = gallery_of(tmp_path)
    assert found.problem is None
    assert "CC BY-SA 4.0" in found.licence
    assert [(panel.domain, panel.seen) for panel in found.panels] == [
        ("line", False),
        ("fluent", True),
        ("noto", True),
        ("twemoji", True),
    ]
    dataset = open_dataset("emoji")
    for panel in found.panels:
        entries = {entry["key"]: entry for entry in predictions[panel.domain]}
        assert panel.total == len(entries)
        assert panel.right == sum(entry["label"] == entry["predicted"] for entry in entries.values())
        assert len(panel.samples) == MOST_PICTURES
        assert {sample.label for sample in panel.samples} == set(dataset.classes)
        for sample in panel.samples:
            entry = entries[sample.key]
            assert sample.label == dataset.classes[entry["label"]]
            assert sample.predicted == dataset.classes[entry["predicted"]]
            shown = Image.open(io.BytesIO(base64.b64decode(sample.image.partition(",")[2]))).convert("RGB")
            original = dataset.image(panel.domain, entry["index"]).resize(shown.size)
            difference = np.abs(np.asarray(shown, dtype=float) - np.asarray(original, dtype=float)).mean()
            assert difference < 12, f"{sample.key} of {panel.domain} is not the picture it should be"
    drawn = [{sample.key for sample in panel.samples} for panel in found.panels]
    assert all(keys == drawn[0] for keys in drawn), "the same things are shown in every style"


@pytest.mark.parametrize("spec", ["no-such-set", "emoij"])
def test_a_data_set_that_cannot_be_opened(tmp_path: Path, spec: str) -> None:
    write_run(tmp_path, dataset_spec=spec)
    found = gallery_of(tmp_path)
    assert found.panels == ()
    assert spec in str(found.problem)


def test_a_data_set_that_has_changed(tmp_path: Path) -> None:
    write_run(tmp_path, predictions=emoji_predictions("line", 0.3, 0.8), dataset_fingerprint="of other pictures")
    assert "changed" in str(gallery_of(tmp_path).problem)


def test_predictions_for_another_picture_are_not_shown(tmp_path: Path) -> None:
    predictions = emoji_predictions("line", 0.3, 0.8)
    for entry in predictions["line"]:
        entry["index"] += 1
    folder = write_run(tmp_path, predictions=predictions, dataset_fingerprint=emoji_fingerprint())
    assert str(folder / "predictions.json") in str(gallery_of(tmp_path).problem)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"line": [{"key": "1f435"}]}), '{"line": {"a": 1}}'])
def test_broken_predictions_are_named(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path, dataset_fingerprint=emoji_fingerprint())
    (folder / "predictions.json").write_text(content)
    assert str(folder / "predictions.json") in str(gallery_of(tmp_path).problem)


def test_pictures_from_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "animals"
    for domain, shade in (("day", 200), ("night", 40)):
        for label in ("cat", "dog"):
            for number in range(3):
                path = root / domain / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (300, 150), (shade, 60 * number, 90)).save(path)
    dataset = open_dataset(root)
    predictions = {
        domain: [
            {"key": dataset.key(domain, index), "index": index, "label": int(label), "predicted": 0, "confidence": 0.6}
            for index, label in enumerate(dataset.labels(domain))
        ]
        for domain in dataset.domains
    }
    write_run(
        tmp_path / "runs",
        held_out="night",
        domains=dataset.domains,
        predictions=predictions,
        dataset=dataset.name,
        dataset_spec=dataset.spec,
        dataset_fingerprint=dataset.fingerprint(),
    )
    found = gallery_of(tmp_path / "runs")
    assert [(panel.domain, panel.right, panel.total) for panel in found.panels] == [("night", 3, 6), ("day", 3, 6)]
    image = Image.open(io.BytesIO(base64.b64decode(found.panels[0].samples[0].image.partition(",")[2])))
    assert image.size == (96, 48)
