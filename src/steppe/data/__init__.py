"""Data: domains, splits, transforms and loaders."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steppe.data.catalog import DatasetRow as DatasetRow
    from steppe.data.catalog import check_dataset as check_dataset
    from steppe.data.catalog import dataset_names as dataset_names
    from steppe.data.catalog import list_datasets as list_datasets
    from steppe.data.catalog import open_dataset as open_dataset
    from steppe.data.domains import DomainDataset as DomainDataset
    from steppe.data.emoji_build import fetch_emoji as fetch_emoji
    from steppe.data.folders import ImageFolders as ImageFolders
    from steppe.data.loader import Batch as Batch
    from steppe.data.loader import balanced_loader as balanced_loader
    from steppe.data.loader import evaluation_loader as evaluation_loader
    from steppe.data.sheet import contact_sheet as contact_sheet
    from steppe.data.splits import Splits as Splits
    from steppe.data.splits import make_splits as make_splits
    from steppe.data.splits import split_indices as split_indices
    from steppe.data.transforms import eval_transform as eval_transform
    from steppe.data.transforms import train_transform as train_transform

# A data set is opened, and looked at, without torch; so nothing is imported before it is asked for.
_HOMES = {
    "open_dataset": "catalog",
    "dataset_names": "catalog",
    "list_datasets": "catalog",
    "DatasetRow": "catalog",
    "check_dataset": "catalog",
    "fetch_emoji": "emoji_build",
    "contact_sheet": "sheet",
    "DomainDataset": "domains",
    "ImageFolders": "folders",
    "Splits": "splits",
    "make_splits": "splits",
    "split_indices": "splits",
    "train_transform": "transforms",
    "eval_transform": "transforms",
    "Batch": "loader",
    "balanced_loader": "loader",
    "evaluation_loader": "loader",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steppe.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steppe.data.{_HOMES[name]}"), name)
