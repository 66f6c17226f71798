"""Backbones and heads: what is trained, with the normalisation its pre-trained weights expect."""

from steppe.models.classifier import Classifier, backbone_names, build_classifier

__all__ = ["Classifier", "build_classifier", "backbone_names"]
