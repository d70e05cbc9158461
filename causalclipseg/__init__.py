"""CausalCLIPSeg: referring segmentation of chest X-rays with causal intervention.

    from causalclipseg import CausalCLIPSeg, segment
    model = CausalCLIPSeg.from_pretrained("assets/models/mini")
    result = segment(model, "picture.png", "Unilateral pulmonary infection, one infected area, lower left lung.")
"""

__version__ = "0.1.0"
__all__ = ["CausalCLIPSeg", "ModelConfig", "TrainingConfig", "preset", "segment"]

_HOMES = {"CausalCLIPSeg": "model", "segment": "inference", "ModelConfig": "config", "TrainingConfig": "config", "preset": "config"}


def __getattr__(name):
    # Torch takes seconds to import; it is loaded with the first name that needs it.
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
