"""The key/value cache of the transformers engine, and the attention that reads it in place."""

from torch import Tensor, empty_like
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class BufferLayer(DynamicLayer):
    """Keys and values of one layer in a buffer with room for what is still to come."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append (batch, heads, new, size) in place; return everything so far."""
        new = key_states.shape[-2]
        if not self.is_initialized:
            batch, heads, _, size = key_states.shape
            self.keys = key_states.new_empty(batch, heads, self.room, size)
            self.values = empty_like(self.keys)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        end = self.length + new
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken several times."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(len(rows), *old.shape[1:])
            new[:, :, : self.length] = old[rows, :, : self.length]
            setattr(self, name, new)

    def grown(self, batch: int, room: int) -> "BufferLayer":
        """A copy for a batch of `batch` equal rows, with another amount of room."""
        other = BufferLayer(room)
        other.keys = self.keys.new_empty(batch, self.keys.shape[1], room, self.keys.shape[3])
        other.values = empty_like(other.keys)
        other.keys[:, :, : self.length] = self.keys[:, :, : self.length]
        other.values[:, :, : self.length] = self.values[:, :, : self.length]
        other.dtype, other.device, other.length, other.is_initialized = (
            self.dtype,
            self.device,
            self.length,
            True,
        )
        return other


def decode_attention(module, query, key, value, attention_mask, **kwargs) -> tuple[Tensor, None]:
    """Attention that reads shared key/value heads in place when there is one query per sequence.

    The query heads of a group attend to the same keys, so they can stand as queries of one head:
    (batch, heads, 1, size) -> (batch, kv heads, heads per kv head, size).
    """
    batch, heads, length, size = query.shape
    if length > 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    grouped = query.view(batch, key.shape[1], heads // key.shape[1], size)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=kwargs["scaling"])
    return out.reshape(batch, 1, heads, size), None


AttentionInterface.register("workbench_decode", decode_attention)
