"""A transformer inside a UNet, as diffusion models have it: image tokens attend to themselves and to a text.

The names are diffusers' own (`proj_in transformer_blocks attn1.to_q attn1.to_out.0 attn2 ff.net.0.proj ff.net.2`), so
that what works here finds its places there.
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, TEXT, HEADS = 32, 24, 4


class Attention(nn.Module):
    def __init__(self, source: int):
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(source, WIDTH, bias=False)
        self.to_v = nn.Linear(source, WIDTH, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (  # (batch, heads, seq, d)
            y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for y in (self.to_q(hidden_states), self.to_k(source), self.to_v(source))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            y = layer(y)
        return y


class GEGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(), nn.Dropout(0.0), nn.Linear(4 * WIDTH, WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(TEXT), FeedForward()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), encoder_hidden_states=text)
        return x + self.ff(self.norm3(x))


class UNetAttention(nn.Module):
    """hidden_states (batch, channels, h, w), encoder_hidden_states (batch, seq, text) -> (batch, channels, h, w)."""

    def __init__(self, channels: int = 8, blocks: int = 2):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.proj_in = nn.Conv2d(channels, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([Block() for _ in range(blocks)])
        self.proj_out = nn.Conv2d(WIDTH, channels, 1)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        x = self.proj_in(self.norm(hidden_states))
        size = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # (batch, h·w, width)
        for block in self.transformer_blocks:
            x = block(x, encoder_hidden_states)
        return hidden_states + self.proj_out(x.transpose(1, 2).unflatten(2, size))
