"""Attentive contrastive learning of a representation of states (ACL, Yang and Nachum 2021, arXiv:2102.05815, sec. 4).

A transformer reads a window of an episode (states through the encoder, actions, rewards), some of it masked, and
predicts an embedding of each masked state, which is told from those of all other masked states of the batch.

Shapes: `B` windows, `L` steps of a window, `S` and `A` observation and action dimensions, `D` of the representation,
`P` = B L.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.conditioning import FrozenEncoder


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Fractions of the states (and, each by itself, of the actions and rewards) of a window: replaced by a learned
    vector, exchanged with those of another window, left as they are. The states of all three are predicted."""

    dropped: float = 0.3
    switched: float = 0.15
    kept: float = 0.15

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Of independent draws that give these fractions: a switch wins over a drop, to be kept over neither."""
        switched = self.switched / (1 - self.kept)
        return self.dropped / (1 - switched) / (1 - self.kept), switched, self.kept


class ContrastiveModel(nn.Module):
    """`encoder` makes the representation that is wanted; `target` the embeddings that predictions are compared with."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        target: FrozenEncoder,
        action_size: int,
        window: int,
        masking: Masking,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder, self.target = encoder.encoder.requires_grad_(True), target.encoder.requires_grad_(True)
        self.masking, self.window, size = masking, window, encoder.layer_sizes[-1]
        self.missing = nn.ParameterList(torch.zeros(count) for count in (size, action_size, 1))
        self.read = nn.Linear(window + size + action_size + 1, size)
        self.transformer = nn.TransformerEncoderLayer(size, heads, size, dropout, batch_first=True)
        self.predict = nn.Linear(size, size)

    def forward(self, observation: Tensor, action: Tensor, reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows [B, L, S], [B, L, A], [B, L] -> predictions and targets [P, D] of all states, and which count, bool
        [P]."""
        rows = observation.flatten(0, 1)[None]
        embedded = self.encoder(rows)[0].view(*observation.shape[:2], -1)
        parts, counts = [], []
        for values, missing in zip((embedded, action, reward[..., None]), self.missing, strict=True):
            masked, count = mask(values, missing, torch.rand(3, *values.shape[:2], device=values.device), self.masking)
            parts.append(masked)
            counts.append(count)
        place = torch.eye(self.window, device=observation.device).expand(len(observation), -1, -1)
        seen = F.relu(self.read(torch.cat([place, *parts], -1)))
        predicted = self.predict(self.transformer(seen)).flatten(0, 1)
        return predicted, self.target(rows)[0], counts[0].flatten()


def mask(values: Tensor, missing: Tensor, uniform: Tensor, masking: Masking) -> tuple[Tensor, Tensor]:
    """Values [B, L, V], some replaced by `missing` [V], then some by those of the next window, by uniform numbers
    [3, B, L]; and which are dropped, switched or kept, bool [B, L]."""
    drop, switch, keep = (u < p for u, p in zip(uniform, masking.probabilities, strict=True))
    values = torch.where(drop[..., None], missing, values)
    values = torch.where(switch[..., None], values.roll(-1, 0), values)
    return values, drop | switch | keep


def contrastive_loss(predicted: Tensor, target: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE over the states that count: -log exp(p_i t_i) / sum_j exp(p_i t_j), the mean over i; and the fraction of
    those whose own target has the highest product. Predictions and targets [P, D], bool [P]."""
    energy = (predicted @ target.T).float().masked_fill(~counts[None], -torch.inf)
    own = energy.diagonal().masked_fill(~counts, 0.0)
    total = counts.sum().clamp(min=1)
    loss = (energy.logsumexp(-1) - own).masked_fill(~counts, 0.0).sum() / total
    right = (own >= energy.amax(-1)) & counts
    return loss, right.sum() / total
