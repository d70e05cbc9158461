"""Why this mask? Attributions for the pixels and for the words, each with a measure of its faithfulness.

A segmenter has no single output to explain. Here it is one number, as in captum's tutorial on segmentation:

    s(x, t) = mean over p in P of S_c(x, t)_p        P: the predicted mask, frozen

P is the mask of the unchanged picture and sentence; it stays as it is while pixels or words are changed, since a
mask that is thresholded anew would compare different pixels each time. S_c are logits: a probability saturates.

How faithful a map is, is asked of the model itself. The picture is cut into patches (the sentence into words), each
is kept or taken away, and s is a function of that choice:

    deletion    area under s while the most important patches are taken away first: low is good
    insertion   area under s while they are put back first: high is good
    fit         1 - infidelity / E[ds^2], infidelity = E[(I . phi - ds)^2] with the best scale (Yeh et al., NeurIPS
                2019; captum's `infidelity`): the share of the change of s under random removals I that the map
                foretells; 0 to 1

Areas are scaled so that s is 1 for the whole picture and 0 for the emptied one, and stand beside the mean of eight
random orders. A map that does no better than these explains nothing, however convincing it looks; one that does so
by a little may still be luck. A fit stands beside that of a flat map: the more is taken away, the more s changes,
whatever it is, so "all patches count the same" foretells much of it, too.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Occlusion, ShapleyValues, ShapleyValueSampling
from captum.metrics import infidelity
from scipy.stats import spearmanr
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as V

from .evaluation import fit
from .inference import Result, segment

METHODS = {
    "gradcam": "Grad-CAM: channels of the fused causal features, weighted by their mean gradient.",
    "integrated_gradients": "Integrated gradients: gradients summed on the way from a blurred picture to the picture.",
    "occlusion": "Occlusion: a window of the picture is blurred, and the answer is watched.",
    "words": "Words: Shapley values, what each word adds on average when the sentence is built up in any order.",
}
BASELINES = ("blur", "black", "mean")
LAYERS = ("fusion", "stage2", "stage3", "stage4")
PATCHES = 14  #: patches a side for the measures of faithfulness
WINDOW, STRIDE = 8, 16  #: occlusion: window and stride as 1/8 and 1/16 of the picture's side
IG_STEPS = 24
ORDERS = 8  #: of the words, drawn for their Shapley values; leaving out one word alone hides what two words say together
EXACT_WORDS = 6  #: so many words at most have exact Shapley values, from all 2^n shorter sentences
CURVE = 10  #: steps of deletion and insertion
RANDOM_ORDERS = 8
REMOVALS = 24  #: random removals for the fit
BATCH = 8


@dataclass(frozen=True)
class Faithfulness:
    """How well a map foretells what the model does; see the module's text for each measure."""

    deletion: float  #: area under s, most important first; low is good
    insertion: float  #: area under s; high is good
    random_deletion: float  #: the same for random orders, mean of `RANDOM_ORDERS`
    random_insertion: float
    fit: float  #: in [0, 1]
    flat_fit: float  #: that of a map which is the same everywhere
    deletion_curve: tuple[float, ...]  #: s after each step, 1 at the start; for a figure
    insertion_curve: tuple[float, ...]

    @property
    def better_than_random(self) -> bool:
        """Both curves beat the mean of the random orders, by however little: no test, and of this picture alone."""
        return self.deletion < self.random_deletion and self.insertion > self.random_insertion


@dataclass
class Explanation:
    """An attribution and what to think of it."""

    method: str
    result: Result  #: the prediction that is explained, at the picture's own size
    attribution: np.ndarray | None  #: (H, W) float32, input size, in logits (Grad-CAM: no unit), signed; None for words
    words: tuple[str, ...] = ()  #: words of the sentence that the model reads, for the method "words"
    scores: tuple[float, ...] = ()  #: of each word: what it adds to s, in logits
    faithfulness: Faithfulness | None = None  #: None where it was not asked for, or there is nothing to explain
    inside: float | None = None  #: share of the positive attribution that lies inside the mask; None for words
    warnings: list[str] = field(default_factory=list)
    empty: bool = False  #: there is no mask at the model's own size, hence nothing to attribute

    def to_dict(self) -> dict:
        """What `/explain` returns as JSON."""
        measures = None
        if self.faithfulness is not None:
            measures = {name: getattr(self.faithfulness, name) for name in (
                "deletion", "insertion", "random_deletion", "random_insertion", "fit", "flat_fit", "better_than_random")}  # fmt: skip
        return {
            "method": self.method, "empty": self.empty, "finding": self.result.finding,
            "words": [{"word": w, "score": s} for w, s in zip(self.words, self.scores)],
            "inside_mask": self.inside, "faithfulness": measures, "warnings": self.warnings,
            "threshold": self.result.threshold, "report": self.result.report, "model": self.result.model,
        }  # fmt: skip


def explain(
    model, image, report: str, method: str = "integrated_gradients", *, threshold: float = 0.5, baseline: str = "blur",
    layer: str = "fusion", faithfulness: bool = True, seed: int = 0, progress: Callable[[float], None] | None = None,
) -> Explanation:  # fmt: skip
    """Attribute the predicted mask to pixels or to words.

    Args:
        model: a `CausalCLIPSeg`. image, report, threshold: as for `inference.segment`.
        method: one of `METHODS`. "gradcam" and "integrated_gradients" take gradients, the others only watch.
        baseline: what a pixel is replaced by: "blur" (a Gaussian of a tenth of the side), "black" or "mean".
        layer: of Grad-CAM: "fusion" (F^c, stride 8) or, where the image tower is a ModifiedResNet, one of its stages, "stage2" to "stage4".
        faithfulness: also measure it, by 275 further passes of the model (Grad-CAM takes 1, integrated gradients 24, occlusion 226).
        seed: of what faithfulness draws; the orders of words are always the same (and all of them up to six words).
        progress: called with the share done, 0 to 1; what it raises ends the work (this is how to cancel).
    Returns:
        an `Explanation`. Where the predicted mask is empty, the attribution is zero and a warning says why.
    Raises:
        ValueError: an unknown method, baseline or layer, a stage of another image tower; whatever `segment` refuses.
    """
    for name, value, known in (("method", method, METHODS), ("baseline", baseline, BASELINES), ("layer", layer, LAYERS)):
        if value not in known:
            raise ValueError(f'There is no {name} "{value}"; choose one of {", ".join(known)}.')
    result = segment(model, image, report, threshold=threshold)
    height, width = result.mask.shape
    words = _words_read(model, result.report) if method == "words" else ()
    explanation = Explanation(method, result, None if words or method == "words" else np.zeros((height, width), np.float32), words)
    explanation.warnings = list(result.warnings)
    target = _Target(model, result, baseline, progress)
    explanation.empty = not target.frozen.any()
    if explanation.empty:
        explanation.warnings.append(f"The mask is empty at threshold {result.threshold:.2f}, so there is nothing to attribute.")
        explanation.scores = (0.0,) * len(words)
        return explanation
    if method == "words" and not words:
        explanation.warnings.append("There is no sentence, so there are no words to attribute to.")
        return explanation
    target.expect(_passes(method, len(words), faithfulness))
    values = _ATTRIBUTE[method](target, words, layer).detach()
    if method == "words":
        features, score = values, lambda keep: target.of_sentences(words, keep)
        explanation.scores = tuple(float(v) for v in values)
    else:
        positive = values.clamp(min=0)
        explanation.inside = float(positive[target.frozen].sum() / positive.sum()) if positive.sum() > 0 else None
        explanation.attribution = _resized(values, (height, width)).numpy().astype(np.float32)
        features, score = F.adaptive_avg_pool2d(values[None, None], PATCHES).flatten(), target.of_patches
    if faithfulness:
        explanation.faithfulness = measure(score, features, seed)
    if progress:
        progress(1.0)
    return explanation


def _words_read(model, report: str) -> tuple[str, ...]:
    """The words of a sentence that the model reads; what comes after the cut has no say, and a thousand words would take minutes."""
    words = report.split()[: model.config.context_length]
    while words and model.tokenize([" ".join(words)])[1][0]:
        words.pop()
    return tuple(words)


# ---------------------------------------------------------------- the number that is explained


class _Target:
    """s(x, t) of one picture and sentence, with the mask frozen, as functions that captum can call."""

    def __init__(self, model, result: Result, baseline: str, progress):
        self.model, self.size = model.eval(), model.config.image_size
        pixels = torch.from_numpy(np.array(result.image))[None, None].float().div_(255)
        self.picture = fit(pixels, self.size).to(model.device)  # (1, 1, S, S)
        self.tokens = model.tokenize([result.report])[0]
        self.background = _background(self.picture, baseline)
        self.progress, self.done, self.all = progress, 0, 1
        with torch.no_grad():
            logits = model(self.picture.expand(-1, 3, -1, -1), self.tokens).logits
        # Of what the model itself saw; the mask at the picture's own size can hold a pixel where this has none.
        self.frozen = (logits[0, 0].sigmoid() >= result.threshold).cpu()

    def expect(self, passes: int) -> None:
        self.all = max(1, passes)

    def __call__(self, pictures: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 1, S, S) and (B, L) or None -> s, (B,)."""
        tokens = self.tokens.expand(len(pictures), -1) if tokens is None else tokens
        logits = self.model(pictures.expand(-1, 3, -1, -1), tokens).logits
        self.done += len(pictures)
        if self.progress:
            self.progress(min(0.99, self.done / self.all))  # 1 is said at the end
        return logits[:, 0, self.frozen.to(logits.device)].mean(dim=1)

    @torch.no_grad()
    def of_patches(self, keep: torch.Tensor) -> torch.Tensor:
        """keep (N, PATCHES**2), 1: the patch as it is, 0: the background -> s, (N,)."""
        grid = keep.float().view(-1, 1, PATCHES, PATCHES)
        share = F.interpolate(grid, size=(self.size, self.size), mode="nearest").to(self.picture.device)
        mixed = share * self.picture + (1 - share) * self.background
        return torch.cat([self(part) for part in mixed.split(BATCH)]).cpu()

    @torch.no_grad()
    def of_sentences(self, words: tuple[str, ...], keep: torch.Tensor) -> torch.Tensor:
        """keep (N, words), 1: the word stays, 0: it is left out -> s, (N,)."""
        texts = [" ".join(word for word, kept in zip(words, row) if kept > 0.5) for row in keep]
        tokens = self.model.tokenize(texts)[0]
        return torch.cat([self(self.picture.expand(len(part), -1, -1, -1), part) for part in tokens.split(BATCH)]).cpu()


def _resized(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def _background(picture: torch.Tensor, baseline: str) -> torch.Tensor:
    if baseline == "black":
        return torch.zeros_like(picture)
    if baseline == "mean":
        return torch.full_like(picture, float(picture.mean()))
    sigma = picture.shape[-1] / 10
    return V.gaussian_blur(picture, [2 * (picture.shape[-1] // 4) + 1] * 2, [sigma, sigma])


# ---------------------------------------------------------------- captum's methods


def _grad_cam(target: _Target, words, layer: str) -> torch.Tensor:
    """(S, S); negative values stay, since they are evidence against the mask."""
    if not hasattr(target.model, "causal"):
        raise ValueError(f"Grad-CAM looks at F^c, which this network has not; choose one of {', '.join(m for m in METHODS if m != 'gradcam')}.")
    place = target.model.causal.fusion if layer == "fusion" else getattr(target.model.vision_encoder.net, f"layer{layer[-1]}", None)
    if place is None:
        raise ValueError(f'This image tower has no place for Grad-CAM\'s layer "{layer}"; choose layer=fusion, or one of the methods {", ".join(m for m in METHODS if m != "gradcam")}.')
    values = LayerGradCam(target, place).attribute(target.picture, relu_attributions=False)
    return F.interpolate(values.float().cpu(), size=(target.size, target.size), mode="bilinear", align_corners=False)[0, 0]


def _integrated_gradients(target: _Target, words, layer: str) -> torch.Tensor:
    values = IntegratedGradients(target).attribute(
        target.picture, baselines=target.background, n_steps=IG_STEPS, internal_batch_size=BATCH
    )
    return values[0, 0].float().cpu()


def _occlusion(target: _Target, words, layer: str) -> torch.Tensor:
    window, stride = target.size // WINDOW, target.size // STRIDE
    with torch.no_grad():
        values = Occlusion(target).attribute(
            target.picture, sliding_window_shapes=(1, window, window), strides=(1, stride, stride), baselines=target.background,
            perturbations_per_eval=BATCH,
        )  # fmt: skip
    return values[0, 0].float().cpu()


def _shapley(target: _Target, words: tuple[str, ...], layer: str) -> torch.Tensor:
    """(words,); captum switches a vector of ones on and off, each of which stands for a word."""
    if len(words) <= EXACT_WORDS:
        return _exact_shapley(lambda keep: target.of_sentences(words, keep), len(words))
    sampling = ShapleyValueSampling(lambda keep: target.of_sentences(words, keep))
    with torch.random.fork_rng(devices=[]):  # captum draws its orders from the global generator
        torch.manual_seed(0)
        return sampling.attribute(torch.ones(1, len(words)), baselines=0, n_samples=ORDERS, perturbations_per_eval=BATCH)[0]


def _exact_shapley(score: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
    """(count,), over all orders; captum asks for a set in each order that begins with it, so the scores of all 2^n sets are looked up."""
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)))  # row number = the set, as binary digits
    scores, digits = score(sets), 2.0 ** torch.arange(count - 1, -1, -1)
    return ShapleyValues(lambda keep: scores[(keep @ digits).long()]).attribute(torch.ones(1, count), baselines=0)[0]


_ATTRIBUTE = {
    "gradcam": _grad_cam, "integrated_gradients": _integrated_gradients, "occlusion": _occlusion, "words": _shapley,
}  # fmt: skip


def _passes(method: str, words: int, faithfulness: bool) -> int:
    """How many pictures will go through the model, for the progress."""
    per_side = 1 + math.ceil((1 - 1 / WINDOW) * STRIDE)
    own = {"gradcam": 1, "integrated_gradients": IG_STEPS, "occlusion": per_side**2 + 1, "words": 2**words if words <= EXACT_WORDS else ORDERS * words + 1}[method]
    return own + (2 + 2 * (1 + RANDOM_ORDERS) * (CURVE + 1) + 3 * (REMOVALS + 1) if faithfulness else 0)


# ---------------------------------------------------------------- faithfulness


def measure(score: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor, seed: int = 0) -> Faithfulness:
    """Deletion, insertion and fit of an attribution over features that can be kept or taken away.

    Args:
        score: keep (N, D) of 0 and 1 -> s (N,). features: (D,) the attribution of each feature.
        seed: of the random orders and removals.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(features)
    ends = score(torch.stack([torch.zeros(count), torch.ones(count)]))
    low, span = ends[0], ends[1] - ends[0]
    span = span if span.abs() > 1e-6 else torch.tensor(1e-6)

    def curve(order: torch.Tensor, insert: bool) -> np.ndarray:
        shares = torch.linspace(0, 1, min(CURVE, count) + 1)
        keep = torch.zeros(len(shares), count)
        for row, share in zip(keep, shares):
            row[order[: round(float(share) * count)]] = 1
        return ((score(keep if insert else 1 - keep) - low) / span).numpy()

    def area(values: np.ndarray) -> float:
        return float(np.trapezoid(values, dx=1 / (len(values) - 1)))

    order = features.argsort(descending=True)
    deletion, insertion = curve(order, False), curve(order, True)
    orders = [torch.randperm(count, generator=generator) for _ in range(RANDOM_ORDERS)]
    return Faithfulness(
        area(deletion), area(insertion),
        float(np.mean([area(curve(o, False)) for o in orders])), float(np.mean([area(curve(o, True)) for o in orders])),
        *_fits(score, [features, torch.ones(count)], seed), tuple(map(float, deletion)), tuple(map(float, insertion)),
    )  # fmt: skip


def _fits(score, maps: list[torch.Tensor], seed: int) -> list[float]:
    """1 - infidelity / E[ds^2] of each map, the same random removals in all."""
    keep = torch.ones(1, len(maps[0]))

    def removals(inputs: torch.Tensor):
        generator = torch.Generator().manual_seed(seed)
        # From a tenth to half of the features at a time: single ones hardly move s, all of them leave nothing.
        share = 0.1 + 0.4 * torch.rand(len(inputs), 1, generator=generator)
        taken = (torch.rand(inputs.shape, generator=generator) < share).float()
        return taken, inputs - taken

    common = dict(n_perturb_samples=REMOVALS, max_examples_per_batch=REMOVALS)
    without = infidelity(score, removals, keep, torch.zeros_like(keep), normalize=False, **common)
    left = [infidelity(score, removals, keep, features[None].float(), normalize=True, **common) for features in maps]
    return [float((1 - value / without).clamp(0, 1)) if without > 1e-12 else 0.0 for value in left]  # s never changes: nothing to foretell


def randomisation_check(model, image, report: str, method: str = "integrated_gradients", *, seed: int = 0) -> float:
    """Does the map change when the model forgets what it learnt? (Adebayo et al., NeurIPS 2018)

    The weights of every convolution and linear layer are drawn anew; the map of that model, for the mask of the real
    one, is compared with the real map.

    Returns:
        Spearman's rank correlation of the two maps, in [-1, 1]: near 0 is good; near 1 means that the map shows the
        picture, not the model. NaN where there is no mask.
    Raises:
        ValueError: the method "words", or what `explain` refuses.
    """
    if method == "words":
        raise ValueError("randomisation_check compares maps of pixels; choose another method than words.")
    real = explain(model, image, report, method, faithfulness=False)
    if real.empty:
        return float("nan")
    forgetful = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in forgetful.modules():
            if isinstance(part, (torch.nn.Conv2d, torch.nn.Linear)):
                part.reset_parameters()
    target = _Target(model, real.result, "blur", None)
    target.model = forgetful.eval()
    values = _ATTRIBUTE[method](target, (), "fusion").detach()
    maps = torch.as_tensor(real.attribution), _resized(values, real.attribution.shape)
    small = [F.adaptive_avg_pool2d(v[None, None], PATCHES).flatten().numpy() for v in maps]
    return float(spearmanr(*small).statistic)
