"""DomainBed's own loader, imported from a checkout of facebookresearch/DomainBed that lies somewhere else.

What its ``scripts/train.py`` does between a folder and a step: one ``InfiniteDataLoader`` a source domain, on its
``MultipleEnvironmentImageFolder``, zipped. Nothing of it is changed; the 80/20 split of each domain is left out. Its
module of data sets imports two of WILDS, which are not used here and need not be installed: empty classes stand in
for them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

STANDING_IN = {
    "wilds": (),
    "wilds.datasets": (),
    "wilds.datasets.camelyon17_dataset": ("Camelyon17Dataset",),
    "wilds.datasets.fmow_dataset": ("FMoWDataset",),
}


def _modules(checkout: Path) -> tuple[Any, Any]:
    if not (checkout / "domainbed" / "datasets.py").is_file():
        raise SystemExit(f"there is no checkout of DomainBed in {checkout}")
    for name, classes in STANDING_IN.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        for each in classes:
            if not hasattr(module, each):
                setattr(module, each, type(each, (), {}))
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from domainbed import datasets
    from domainbed.lib import fast_data_loader

    return datasets, fast_data_loader


def minibatches(
    checkout: Path, root: Path, *, batch_per_domain: int, workers: int, domains: int
) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
    """DomainBed's stream of training batches (224 × 224, augmented), a pair (x, y) of every source domain.

    Args:
        workers: processes of each domain's loader; DomainBed has 8.
        domains: how many are trained on, the first in the order of the folders' names.
    """
    datasets, fast_data_loader = _modules(checkout)
    environments = datasets.MultipleEnvironmentImageFolder(str(root), [], True, {})
    loaders = [
        fast_data_loader.InfiniteDataLoader(
            dataset=environment, weights=None, batch_size=batch_per_domain, num_workers=workers
        )
        for environment in environments.datasets[:domains]
    ]
    return zip(*loaders, strict=True)
