"""CUDA graphs: on a GPU, a training step's passes are recorded once and then replayed.

A pass of `paper` and its gradient start some thousands of kernels, and a CPU starts them more slowly than a large GPU computes
them. A recorded pass is started as a whole, with the same kernels on the same numbers.
"""

from __future__ import annotations

import contextlib
import gc

import torch
from torch import nn

from .encoders import OtherTextEncoder, TextEncoder
from .model import Segmentation, Segmenter


class Recording:
    """A network in training, each kind of pass recorded at its first call (with or without the confounder branch, one picture size).

    Takes the place of the network in `losses.batch_loss`. Gradients live in the recording's own memory, so each pass needs its
    gradient taken, and the weights' gradients let go, before the next. The text encoder runs on all sentences of a batch,
    equal ones too: a recording has one shape.

    Args:
        model: on a GPU; its training mode must not change while it is recorded.
    """

    def __init__(self, model: Segmenter):
        self.model, self.tokenize = model, model.tokenize
        self.shape, self.passes, self.pool = None, {}, None
        for part in model.modules():
            if isinstance(part, OtherTextEncoder):
                raise ValueError("graphs=true records CLIP's text tower alone; leave it out with this text_encoder.")
            if isinstance(part, TextEncoder):
                part.each = True
        # weights meet their gradients on another stream than the recording's, as is meant; earlier torch neither knows nor says it
        getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", bool)(False)

    def __call__(self, images: torch.Tensor, tokens: torch.Tensor, confounder: bool = False, reversal: float | None = None) -> Segmentation:
        """As the network's own call, without its masks; all batches of one picture size must have the same number of pictures."""
        if images.shape != self.shape:
            self.shape, self.passes, self.pool = images.shape, {}, torch.cuda.graph_pool_handle()  # an earlier size does not come back,
            gc.collect()  # a recorded pass holds itself, and the new size needs its memory
            torch.cuda.empty_cache()
        kind = confounder, reversal
        if kind not in self.passes:
            self.passes[kind] = self._record(_Pass(self.model, *kind), images, tokens)
        logits, *confounding = self.passes[kind](images, tokens)
        return Segmentation(logits, confounding[0] if confounding else None, ())

    def _record(self, one_pass: nn.Module, images: torch.Tensor, tokens: torch.Tensor) -> nn.Module:
        statistics = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        kind = images.device.type
        autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
        with autocast, _other_threads_go_on():  # weights are cast within the recording; batches are pinned meanwhile
            recorded = torch.cuda.make_graphed_callables(one_pass, (images.clone(), tokens.clone()), allow_unused_input=True, pool=self.pool)
        with torch.no_grad():
            for buffer, before in statistics:  # recording runs the pass a few times
                buffer.copy_(before)
        return recorded


@contextlib.contextmanager
def _other_threads_go_on():
    """Let `make_graphed_callables` record this thread alone; torch 2.11 cannot be asked for that, and 2.14 can."""
    records = torch.cuda.graph

    class ThisThread(records):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "capture_error_mode": "thread_local"})

    torch.cuda.graph = ThisThread
    try:
        yield
    finally:
        torch.cuda.graph = records


class _Pass(nn.Module):
    """One kind of pass as a module of tensors alone, which is what can be recorded."""

    def __init__(self, model: Segmenter, confounder: bool, reversal: float | None):
        super().__init__()
        self.model, self.kind = model, dict(confounder=confounder, reversal=reversal)

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(images, tokens, **self.kind)
        return (output.logits,) if output.confounder_logits is None else (output.logits, output.confounder_logits)
