"""Checks of 02_encoders."""

from __future__ import annotations

import torch

from . import close, expect


def shapes(answer):
    """Strides 8, 16 and 32, and twice the channels at each stage: you can predict every F_i."""
    from ..config import ClipConfig, ModelConfig
    from ..encoders import VisionEncoder, build_clip

    for width, (h, w) in ((4, (64, 96)), (8, (32, 64))):
        clip = build_clip(ModelConfig(image_size=64, clip=ClipConfig(embed_dim=8, vision_layers=(1, 1, 1, 1), vision_width=width, vision_heads=4,
                                                                     text_width=8, text_heads=1, text_layers=1)))  # fmt: skip
        with torch.inference_mode():
            want = [tuple(x.shape[1:]) for x in VisionEncoder(clip).eval()(torch.zeros(1, 3, h, w))]
        got = answer(h, w, width)
        expect(isinstance(got, (list, tuple)) and len(got) == 3, "return three shapes, of F_2, F_3 and F_4.")
        for i, (mine, theirs) in enumerate(zip(got, want), start=2):
            mine = tuple(int(x) for x in mine)
            expect(len(mine) == 3, f"F_{i} needs three numbers: channels, height, width.")
            expect(mine[1:] == theirs[1:], f"F_{i} of a {h} × {w} picture is {theirs[1]} × {theirs[2]}, not {mine[1]} × {mine[2]}.")
            expect(mine[0] == theirs[0], f"F_{i} with width {width} has {theirs[0]} channels, not {mine[0]}.")


def tokens(answer):
    """Bracketed, cut and padded like CLIP's own; and a cut sentence keeps its EOT."""
    from ..encoders import tokenize

    sot, eot = 49406, 49407
    from open_clip.tokenizer import SimpleTokenizer

    encode = SimpleTokenizer().encode
    for sentence, length in (("left lung", 8), ("", 5), ("infection of the upper left lung", 6), ("one two three four", 6)):
        ids = encode(sentence)
        got = answer(list(ids), length)
        want = tokenize([sentence], length)[0][0]
        expect(got is not None, "return the list of tokens.")
        got = [int(x) for x in got]
        expect(len(got) == length, f"{len(ids)} ids in a length of {length} gave {len(got)} tokens; it should always be {length}.")
        expect(got[0] == sot, "the first token is SOT, 49406.")
        expect(eot in got, f"EOT is missing for {len(ids)} ids in a length of {length}: a cut sentence loses its end, not its EOT.")
        expect(got == want.tolist(), f'for "{sentence}" and a length of {length}: {got} instead of {want.tolist()}.')


def causal_mask(answer):
    """Each token sees itself and what came before; that is why nothing after EOT can matter."""
    for length in (1, 4, 7):
        got = answer(length)
        want = torch.full((length, length), float("-inf")).triu(1)
        expect(isinstance(got, torch.Tensor), "return a tensor.")
        expect(tuple(got.shape) == (length, length), f"the mask has the shape {tuple(got.shape)}; it should be ({length}, {length}).")
        expect(got.is_floating_point(), "the mask is added to the attention's scores: it holds 0 and minus infinity, not True and False.")
        expect(not torch.isnan(got).any(), "the mask holds values that are not a number: 0 · (−∞) is one.")
        if length > 1:
            expect(not torch.equal(got, want.T), "the mask is turned round: row q, column k is what token q sees of token k, and k ≤ q is allowed.")
        expect(not torch.isinf(got.diagonal()).any(), "a token may see itself.")
        expect(torch.equal(got.float(), want), "allowed pairs get 0, forbidden ones minus infinity.")


def tau(answer):
    """From tokens to τ, by your own hand: the same numbers as the package."""
    from ..config import ClipConfig, ModelConfig
    from ..encoders import TextEncoder, build_clip, tokenize

    torch.manual_seed(0)
    clip = build_clip(ModelConfig(image_size=64, clip=ClipConfig(embed_dim=12, vision_layers=(1, 1, 1, 1), vision_width=8, vision_heads=4,
                                                                 text_width=16, text_heads=2, text_layers=2)))  # fmt: skip
    encoder = TextEncoder(clip).eval()
    batch = tokenize(["infection of the left lung", "one", ""], 12)[0]
    with torch.inference_mode():
        want, got = encoder(batch), answer(encoder, batch.clone())
        expect(isinstance(got, torch.Tensor), f"return a tensor (B, T), not {type(got).__name__}.")
        expect(got.shape == want.shape, f"τ has the shape {tuple(got.shape)}; it should be {tuple(want.shape)}, one row a sentence.")
        if not torch.allclose(got, want, atol=1e-4):
            x = encoder.token_embedding(batch) + encoder.positional_embedding[: batch.shape[1]]
            mask = torch.full((12, 12), float("-inf")).triu(1)
            free, bound = encoder.transformer(x), encoder.transformer(x, attn_mask=mask)
            rows, eot = torch.arange(3), batch.argmax(1)

            def like(y):
                return torch.allclose(got, y @ encoder.text_projection, atol=1e-4)

            expect(not like(encoder.ln_final(free)[rows, eot]), "every token sees every other one: the causal mask is missing.")
            expect(not like(encoder.ln_final(bound)[:, -1]), "the last position is padding; take the activation at EOT.")
            expect(not like(encoder.ln_final(bound).mean(1)), "τ is the activation at EOT, not a mean over tokens.")
            expect(not like(bound[rows, eot]), "the last layer norm (ln_final) is missing.")
        close(got, want, "τ")
