"""From folders on disk to batches: layouts, checks, decoding, and augmentation that keeps sentence and side in step."""
from .dataset import ReferringDataset, collate, item_generator, load_image, load_mask
from .layouts import Sample, data_digest, describe_layout, find_samples, split_rule
from .tables import DataError
from .transforms import TrainTransform

__all__ = ["DataError", "ReferringDataset", "Sample", "TrainTransform", "collate", "data_digest", "describe_layout",
           "find_samples", "item_generator", "load_image", "load_mask", "split_rule"]
