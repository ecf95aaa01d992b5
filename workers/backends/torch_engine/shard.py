"""A rank's share of a model: whole groups of heads, and a slice of the feed-forward network."""

from __future__ import annotations

import msgspec

from inferflux.broker.errors import ConfigError

from .architecture import Architecture


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """Rank `rank` of `world_size`. Shares may differ by one where a size does not divide."""

    rank: int = 0
    world_size: int = 1

    def span(self, size: int) -> slice:
        """This rank's part of `size` things."""
        return slice(size * self.rank // self.world_size, size * (self.rank + 1) // self.world_size)

    def local(self, whole: Architecture) -> Architecture:
        """The architecture of this rank's share. Raises ConfigError when there are more ranks than groups of heads."""
        if self.world_size > whole.num_kv_heads:
            raise ConfigError(
                f"INFERFLUX_DIST_WORLD_SIZE: {self.world_size} ranks cannot share {whole.num_kv_heads} key heads; use "
                f"at most {whole.num_kv_heads} ranks for this model"
            )
        kv_heads, features = self.span(whole.num_kv_heads), self.span(whole.feed_forward_size)
        num_kv_heads = kv_heads.stop - kv_heads.start
        return msgspec.structs.replace(
            whole,
            num_kv_heads=num_kv_heads,
            num_heads=num_kv_heads * (whole.num_heads // whole.num_kv_heads),
            feed_forward_size=features.stop - features.start,
        )
