"""Data: domains, splits, transforms and loaders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steppe.lazy import lazy_names

if TYPE_CHECKING:
    from steppe.data.catalog import DatasetRow as DatasetRow
    from steppe.data.catalog import check_dataset as check_dataset
    from steppe.data.catalog import dataset_names as dataset_names
    from steppe.data.catalog import examine_dataset as examine_dataset
    from steppe.data.catalog import list_datasets as list_datasets
    from steppe.data.catalog import open_dataset as open_dataset
    from steppe.data.decoded import decoded_pictures as decoded_pictures
    from steppe.data.decoded import decoded_problems as decoded_problems
    from steppe.data.decoded_places import CacheOptions as CacheOptions
    from steppe.data.device_augmentation import DeviceAugmentation as DeviceAugmentation
    from steppe.data.device_augmentation import raw_loader as raw_loader
    from steppe.data.domains import DomainDataset as DomainDataset
    from steppe.data.emoji_build import fetch_emoji as fetch_emoji
    from steppe.data.folders import ImageFolders as ImageFolders
    from steppe.data.loader import Batch as Batch
    from steppe.data.loader import balanced_loader as balanced_loader
    from steppe.data.loader import evaluation_loader as evaluation_loader
    from steppe.data.mnist import ColoredMNIST as ColoredMNIST
    from steppe.data.mnist import RotatedMNIST as RotatedMNIST
    from steppe.data.mnist_files import fetch_mnist as fetch_mnist
    from steppe.data.official import OFFICIAL as OFFICIAL
    from steppe.data.official import published_names as published_names
    from steppe.data.official_fetch import fetch_official as fetch_official
    from steppe.data.official_folders import OfficialFolders as OfficialFolders
    from steppe.data.sheet import contact_sheet as contact_sheet
    from steppe.data.splits import Splits as Splits
    from steppe.data.splits import make_splits as make_splits
    from steppe.data.splits import split_indices as split_indices
    from steppe.data.tensors import TensorDomains as TensorDomains
    from steppe.data.transforms import eval_transform as eval_transform
    from steppe.data.transforms import tensor_transform as tensor_transform
    from steppe.data.transforms import train_transform as train_transform

# A data set is opened, and looked at, without torch; so nothing is imported before it is asked for.
_HOMES: dict[str, tuple[str, ...]] = {
    "catalog": ("open_dataset", "dataset_names", "list_datasets", "DatasetRow", "check_dataset", "examine_dataset"),
    "emoji_build": ("fetch_emoji",),
    "sheet": ("contact_sheet",),
    "domains": ("DomainDataset",),
    "tensors": ("TensorDomains",),
    "folders": ("ImageFolders",),
    "mnist": ("RotatedMNIST", "ColoredMNIST"),
    "mnist_files": ("fetch_mnist",),
    "official": ("OFFICIAL", "published_names"),
    "official_folders": ("OfficialFolders",),
    "official_fetch": ("fetch_official",),
    "splits": ("Splits", "make_splits", "split_indices"),
    "transforms": ("train_transform", "eval_transform", "tensor_transform"),
    "loader": ("Batch", "balanced_loader", "evaluation_loader"),
    "decoded_places": ("CacheOptions",),
    "decoded": ("decoded_pictures", "decoded_problems"),
    "device_augmentation": ("DeviceAugmentation", "raw_loader"),
}

__all__ = [name for names in _HOMES.values() for name in names]

__getattr__ = lazy_names(__name__, _HOMES)
