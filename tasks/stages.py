"""What the stages of embedding say together: how near the limit a run is, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence

from models.values import EmbeddedGroup

READING, DECODING, ENCODING = "reading", "decoding", "encoding"
IDLE = 0.75  # below this share of the limit somebody waits for something that is no processor


def share_of_limit(group: EmbeddedGroup) -> float:
    """How busy the busiest resource was, 0 to 1.

    On a CPU decoding and encoding share the cores: the limit is 1 / (1 / encoder alone + 1 / decoding alone), which is
    reached when no core is ever idle. With a GPU it is the slower of the two stages.
    """
    if not group.seconds:
        return 0.0
    cores = group.seconds * group.cores
    if group.device == "cpu":
        return min(1.0, (group.decode_seconds + group.encode_seconds) / cores)
    return min(1.0, max(group.decode_seconds / cores, group.encode_seconds / group.seconds))


def bottleneck(group: EmbeddedGroup) -> str:
    """The stage that the others wait for; '' where nothing was done."""
    if not group.seconds:
        return ""
    waited = group.read_seconds / (group.seconds * group.workers)
    if share_of_limit(group) < IDLE and waited > 0.5:
        return READING
    on_gpu = group.device != "cpu"
    decoding = group.decode_seconds / group.cores
    encoding = group.encode_seconds if on_gpu else group.encode_seconds / group.cores
    return DECODING if decoding > encoding else ENCODING


def together(groups: Sequence[EmbeddedGroup], *, seconds: float) -> EmbeddedGroup:
    """Several steps as one that took so many seconds; they may have run at once, on other machines."""
    if not groups:
        return EmbeddedGroup()
    busy = sum(group.seconds for group in groups)
    at_once = max(1.0, busy / seconds) if seconds else 1.0
    first = groups[0]
    return EmbeddedGroup(
        left=[shard for group in groups for shard in group.left],
        shards=sum(group.shards for group in groups),
        images=sum(group.images for group in groups),
        bytes=sum(group.bytes for group in groups),
        seconds=busy / at_once,
        cores=round(first.cores * at_once),
        workers=round(first.workers * at_once),
        device=first.device,
        read_seconds=sum(group.read_seconds for group in groups),
        decode_seconds=sum(group.decode_seconds for group in groups),
        encode_seconds=sum(group.encode_seconds for group in groups) / (at_once if first.device != "cpu" else 1.0),
    )


def told(group: EmbeddedGroup) -> str:
    """A line for somebody who watches."""
    if not group.seconds:
        return ""
    rate, speed = group.images / group.seconds, group.bytes / group.seconds / 1e6
    return f"{rate:,.0f} images/s · {speed:,.1f} MB/s · {share_of_limit(group):.0%} of the limit · {bottleneck(group)}"
