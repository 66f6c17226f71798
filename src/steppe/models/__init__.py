"""Backbones and heads: what is trained, with the normalisation its pre-trained weights expect."""

from steppe.models.backbones import check_backbone, takes_channels
from steppe.models.classifier import Classifier, backbone_names, build_classifier, has_batch_norm

__all__ = ["Classifier", "build_classifier", "backbone_names", "check_backbone", "takes_channels", "has_batch_norm"]
