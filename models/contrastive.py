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
    """How states are masked, and each by itself actions and rewards: dropped, replaced by a learned vector; switched
    with those of another window, which may be dropped; or kept. All three are predicted. As in ACL's code these numbers
    are made into probabilities of independent draws, of which a switch hides a drop, and both hide a keep: by default
    18% are switched, 35% dropped, 7% kept, and 40% are not predicted."""

    dropped: float = 0.3
    switched: float = 0.15
    kept: float = 0.15

    @property
    def probabilities(self) -> tuple[float, float, float]:
        """Of a drop, a switch, a keep."""
        switched = self.switched / (1 - self.kept)
        return self.dropped / (1 - switched) / (1 - self.kept), switched, self.kept


class ContrastiveModel(nn.Module):
    """`encoder` makes the representation that is wanted; `target` the embeddings that predictions are compared with."""

    hidden: Tensor  # bool [L, L]

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
        earlier = torch.ones(window, window, dtype=torch.bool).tril(-1)  # a step sees itself and later ones
        self.register_buffer("hidden", earlier, persistent=False)
        self.input_layer = nn.Linear(window + size + action_size + 1, size)
        self.transformer = nn.TransformerEncoderLayer(size, heads, size, dropout, batch_first=True)
        self.predict = nn.Linear(size, size)

    def forward(self, observation: Tensor, action: Tensor, reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows [B, L, S], [B, L, A], [B, L] -> predictions and targets [P, D] of all states, and which of them are
        predicted, bool [P]."""
        rows = observation.flatten(0, 1)[None]
        embedded = self.encoder(rows)[0].view(*observation.shape[:2], -1)
        parts, predicted = [], []
        for values, missing in zip((embedded, action, reward[..., None]), self.missing, strict=True):
            masked, chosen = mask(values, missing, torch.rand(3, *values.shape[:2], device=values.device), self.masking)
            parts.append(masked)
            predicted.append(chosen)
        position = torch.eye(self.window, device=observation.device).expand(len(observation), -1, -1)
        tokens = F.relu(self.input_layer(torch.cat([position, *parts], -1)))
        prediction = self.predict(self.transformer(tokens, self.hidden)).flatten(0, 1)
        return prediction, self.target(rows)[0], predicted[0].flatten()


def mask(values: Tensor, missing: Tensor, uniform: Tensor, masking: Masking) -> tuple[Tensor, Tensor]:
    """Values [B, L, V], some replaced by `missing` [V], then some by those of the next window, by uniform numbers
    [3, B, L]; and which are dropped, switched or kept, bool [B, L]."""
    drop, switch, keep = (u < p for u, p in zip(uniform, masking.probabilities, strict=True))
    values = torch.where(drop[..., None], missing, values)
    values = torch.where(switch[..., None], values.roll(-1, 0), values)
    return values, drop | switch | keep


def contrastive_loss(prediction: Tensor, target: Tensor, is_predicted: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE over the states that are predicted, in float32: -log exp(p_i z_i) / sum_j exp(p_i z_j), the mean over i;
    and the fraction of those whose own target has the highest product. Predictions and targets [P, D], bool [P]."""
    with torch.autocast(prediction.device.type, enabled=False):
        energy = (prediction.float() @ target.float().T).masked_fill(~is_predicted[None], -torch.inf)
    own = energy.diagonal().masked_fill(~is_predicted, 0.0)
    total = is_predicted.sum().clamp(min=1)
    loss = (energy.logsumexp(-1) - own).masked_fill(~is_predicted, 0.0).sum() / total
    is_right = (own >= energy.amax(-1)) & is_predicted
    return loss, is_right.sum() / total
