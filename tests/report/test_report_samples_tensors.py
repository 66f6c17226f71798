"""The page's pictures where the data set consists of tensors: the digits themselves."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import write_run
from PIL import Image
from small_mnist import pinned, write_mnist

from steppe.data import open_dataset
from steppe.report import load_runs, summarise
from steppe.report.samples import gallery


@pytest.mark.parametrize("kind", ["rotated-mnist", "colored-mnist"])
def test_digits_are_shown_with_their_predictions(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned(monkeypatch)
    dataset = open_dataset(write_mnist(tmp_path / "mnist") / f"{kind}@1")
    predictions = {
        domain: [
            {"key": dataset.key(domain, index), "index": index, "label": int(label), "predicted": 0, "confidence": 0.6}
            for index, label in enumerate(dataset.labels(domain))
        ]
        for domain in dataset.domains
    }
    write_run(
        tmp_path / "runs",
        held_out=dataset.domains[0],
        domains=dataset.domains,
        predictions=predictions,
        dataset=dataset.name,
        dataset_spec=dataset.spec,
        dataset_fingerprint=dataset.fingerprint(),
    )
    (comparison,) = summarise(load_runs(tmp_path / "runs")).comparisons
    found = gallery(comparison, comparison.methods[0])
    assert found.problem is None
    assert "Yann LeCun" in found.licence
    assert [panel.domain for panel in found.panels] == list(dataset.domains)
    for panel in found.panels:
        index_of = {entry["key"]: entry["index"] for entry in predictions[panel.domain]}
        for sample in panel.samples:
            shown = Image.open(io.BytesIO(base64.b64decode(sample.image.partition(",")[2]))).convert("RGB")
            original = np.asarray(dataset.image(panel.domain, index_of[sample.key]), dtype=float)
            assert np.abs(np.asarray(shown, dtype=float) - original).mean() < 12, sample.key
