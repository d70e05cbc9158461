"""From folders on disk to batches: layouts, checks, decoding, and augmentation that keeps sentence and side in step."""
from .checks import DataCheck, check
from .dataset import ReferringDataset, collate, finish, item_generator, load_image, load_mask, stack
from .describe import describe
from .download import download
from .layouts import Sample, data_digest, describe_layout, find_samples, split_rule
from .tables import DataError
from .transforms import TrainTransform

__all__ = ["DataCheck", "DataError", "ReferringDataset", "Sample", "TrainTransform", "check", "collate", "data_digest",
           "describe", "describe_layout", "download", "find_samples", "finish", "item_generator", "load_image", "load_mask",
           "split_rule", "stack"]
