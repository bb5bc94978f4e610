"""``query-mask``: masks as products of queries and pixels, of the Mask-DINO kind (Li 2023).

m = q · M(T(C_b) + F(C_e)): C_b are backbone features at 1/4, C_e those of a transformer at 1/8,
T a 1 x 1 convolution, F interpolation, M the mask head. A class has one or more queries, joined
by log-sum-exp. Boxes, class scores and denoising serve detection and are left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import CONV, Width, any_size, conv, conv_norm_act, he, resize
from .vesselnet import Block

HEADS = 4


class QueryMask(nn.Module):
    """Backbone of residual blocks, transformer at 1/8, queries, mask product at 1/4."""

    stride = 8

    def __init__(
        self, dims: int, in_channels: int, outputs: int, width: int, queries: int, layers: int
    ) -> None:
        super().__init__()
        deep = 4 * width
        self.outputs = outputs
        self.stem = nn.Sequential(
            Block(dims, in_channels, width, 2), Block(dims, width, 2 * width, 2)
        )
        self.down = Block(dims, 2 * width, deep, 2)
        settings = {"batch_first": True, "norm_first": True, "dropout": 0.0}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(deep, HEADS, 2 * deep, **settings),  # type: ignore[arg-type]
            layers,
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(deep, HEADS, 2 * deep, **settings),  # type: ignore[arg-type]
            layers,
        )
        self.query = nn.Parameter(torch.randn(outputs * queries, deep))
        self.lateral = conv(dims, 2 * width, deep, 1, bias=True)
        self.mask = nn.Sequential(conv_norm_act(dims, deep, deep), CONV[dims](deep, deep, 1))

    @any_size
    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, ...)`` to ``(N, outputs, ...)``."""
        q, pixels = self.parts(x)
        masks = torch.einsum("nqd,nd...->nq...", q, pixels) / math.sqrt(q.shape[-1])
        classes = masks.reshape(len(x), self.outputs, -1, *masks.shape[2:]).logsumexp(2)
        return resize(classes, x.shape[2:])

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries ``(N, Q, d)`` and the pixels ``(N, d, ...)`` at 1/4."""
        fine = self.stem(x)
        coarse = self.down(fine)
        tokens = coarse.flatten(2).transpose(1, 2)
        tokens = self.encoder(tokens + positions(coarse))
        coarse = tokens.transpose(1, 2).reshape(coarse.shape)
        q = self.decoder(self.query.expand(len(x), -1, -1), tokens)
        return q, self.mask(self.lateral(fine) + resize(coarse, fine.shape[2:]))


def positions(x: Tensor) -> Tensor:
    """Return sines and cosines of every axis, ``(tokens, C)``, of a map ``(N, C, ...)``."""
    dims, channels = x.ndim - 2, x.shape[1]
    count = channels // (2 * dims)
    rates = 10000.0 ** (-torch.arange(count, device=x.device) / max(1, count))
    axes = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[2:]), indexing="ij")
    phase = torch.stack(axes, -1).flatten(0, -2)[..., None] * rates
    waves = torch.cat([phase.sin(), phase.cos()], -1).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1])).to(x.dtype)


def query_mask(
    dims: int,
    in_channels: int,
    outputs: int,
    *,
    width: Width = 32,
    queries: Width = 4,
    layers: Width = 2,
) -> nn.Module:
    """Make ``query-mask`` with so many queries an output and transformer layers."""
    return he(QueryMask(dims, in_channels, outputs, width, queries, layers))
