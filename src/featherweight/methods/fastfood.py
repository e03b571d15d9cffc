"""The Fastfood map: a random (n, d) matrix that is never formed.

    P z = c · [H G₁ Π₁ H B₁ z; H G₂ Π₂ H B₂ z; …]        first n entries; z padded by zeros to L = 2^⌈log₂ d⌉

H is the Hadamard matrix (L, L) of ±1, B random signs, Π a permutation, G Gaussian, all three of size L and fresh for
each block of L outputs (Π for each tensor). c = √(L/n) / √(L ΣG²) of the block keeps lengths: E‖P z‖ = ‖z‖. Costs
some 32 log₃₂ L multiplications and keeps 5 bytes per output.

B, Π and G are a pure function of (seed, stream, position), defined here to the bit and never stored: version 1 takes
splitmix64 of the position, bit 63 as the sign, and two of its 31-bit halves to a normal number by Box and Muller.
Source: Le, Sarlós and Smola 2013, "Fastfood: approximating kernel expansions in loglinear time".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VERSION = 1
STEP = 1 << 22  # numbers drawn at a time: bounds the memory of their 64-bit stages
RADIX = 32  # size of the small Hadamard matrices: the fastest of 16 to 128 on a CPU


class Fastfood(nn.Module):
    """P (n, d) as a function of z (d,). Its tensors are kept as integers, so that no cast of the model changes P."""

    signs: Tensor
    order: Tensor
    gauss: Tensor

    def __init__(self, n: int, d: int, seed: int, stream: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.n, self.d, self.size = n, d, 1 << max(0, d - 1).bit_length()
        blocks = -(-n // self.size)
        if torch.device(device).type == "meta":
            signs = torch.empty(blocks, self.size, dtype=torch.int8, device="meta")
            gauss, order = signs.float(), torch.empty(self.size, dtype=torch.int64, device="meta")
        else:
            signs, gauss = drawn(blocks * self.size, seed, 2 * stream)
            signs, gauss = signs.view(blocks, self.size), gauss.view(blocks, self.size)
            order = hashed(torch.arange(self.size), seed, 2 * stream + 1).argsort(stable=True)
            gauss = gauss * (self.size / n) ** 0.5 / (self.size * gauss.square().sum(1, keepdim=True)).sqrt()
        self.register_buffer("signs", signs.to(device), persistent=False)
        self.register_buffer("order", order.to(device), persistent=False)
        self.register_buffer("gauss", gauss.float().view(torch.int32).to(device), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        z = F.pad(z, (0, self.size - self.d))  # (L,)
        mixed = hadamard(z * self.signs.to(z.dtype)).index_select(1, self.order)  # (blocks, L)
        return hadamard(mixed * self.gauss.view(torch.float32).to(z.dtype)).flatten()[: self.n]


def hadamard(x: Tensor) -> Tensor:
    """H x along the last dimension, whose size is a power of two: H is a Kronecker product of small ones, taken one
    at a time as products of matrices, each of which goes over the memory once."""
    shape, step = x.shape, 1
    while step < shape[-1]:
        H = hadamard_matrix(min(RADIX, shape[-1] // step)).to(x)
        x = H @ x.reshape(-1, len(H), step) if step > 1 else x.reshape(-1, len(H)) @ H
        step *= len(H)
    return x.reshape(shape)


def hadamard_matrix(size: int) -> Tensor:
    """H (size, size), by Sylvester's doubling."""
    H = torch.ones(1, 1)
    while len(H) < size:
        H = torch.cat((torch.cat((H, H), 1), torch.cat((H, -H), 1)))
    return H


def hashed(at: Tensor, seed: int, stream: int) -> Tensor:
    """splitmix64 of positions (int64), with wrapping arithmetic; other streams and seeds start elsewhere."""
    start = mixed(torch.tensor(seed)) + stream
    return mixed(mixed(start) + at)


def mixed(x: Tensor) -> Tensor:
    x = x + signed(0x9E3779B97F4A7C15)
    x = (x ^ shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shifted(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ shifted(x, 31)


def shifted(x: Tensor, by: int) -> Tensor:
    """A logical shift to the right: int64 would draw in its sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def drawn(count: int, seed: int, stream: int) -> tuple[Tensor, Tensor]:
    """(signs ±1 int8, standard normal numbers fp32)."""
    signs, gauss = torch.empty(count, dtype=torch.int8), torch.empty(count)
    for start in range(0, count, STEP):
        bits = hashed(torch.arange(start, min(start + STEP, count)), seed, stream)
        low, high = bits & 0x7FFFFFFF, (bits >> 31) & 0x7FFFFFFF
        radius = (-2 * ((low + 1).double() / (1 << 31)).log()).sqrt()
        gauss[start : start + STEP] = (radius * (2 * math.pi * high.double() / (1 << 31)).cos()).float()
        signs[start : start + STEP] = (1 - 2 * (bits < 0).to(torch.int8)).to(torch.int8)
    return signs, gauss
