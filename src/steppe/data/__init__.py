"""Data: domains, splits, transforms and loaders."""

from steppe.data.catalog import DatasetRow, check_dataset, dataset_names, list_datasets, open_dataset
from steppe.data.domains import DomainDataset
from steppe.data.emoji_build import fetch_emoji
from steppe.data.folders import ImageFolders
from steppe.data.loader import Batch, balanced_loader, evaluation_loader
from steppe.data.sheet import contact_sheet
from steppe.data.splits import Splits, make_splits, split_indices
from steppe.data.transforms import eval_transform, train_transform

__all__ = [
    "open_dataset",
    "dataset_names",
    "list_datasets",
    "DatasetRow",
    "check_dataset",
    "fetch_emoji",
    "contact_sheet",
    "DomainDataset",
    "ImageFolders",
    "Splits",
    "make_splits",
    "split_indices",
    "train_transform",
    "eval_transform",
    "Batch",
    "balanced_loader",
    "evaluation_loader",
]
