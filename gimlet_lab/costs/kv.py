"""KV cache between the device that prefills and the one that decodes: bytes, and the link it needs.

The network model of Asgar, Nguyen and Katti (arXiv 2507.19635, §5.2). Rates are one way and at their peak:
the whole cache within the time to first token on the sending side, within one token on the receiving one.
"""

from __future__ import annotations


def kv_bytes(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    tokens: int,
    batch: int = 1,
    item_bytes: float = 2.0,
) -> float:
    """Bytes of the keys and values of a batch's tokens in all layers.

    Examples
    --------
    Llama 3 8B, 32K tokens in 16 bits:

    >>> kv_bytes(32, 4096, 32, 8, 32768) / 1e9
    4.294967296
    """
    return 2.0 * layers * hidden * (kv_heads / heads) * tokens * batch * item_bytes


def egress_bytes_per_s(cache_bytes: float, ttft_s: float, prefill_devices: int = 1) -> float:
    """What each prefilling device must send at, so that the cache is away when the first token is due.

    Examples
    --------
    Llama 3 8B and 70B at 32K tokens and a TTFT of 250 ms, in Gbit/s:

    >>> small, large = kv_bytes(32, 4096, 32, 8, 32768), kv_bytes(80, 8192, 64, 8, 32768)
    >>> [round(egress_bytes_per_s(cache, 0.25) * 8 / 1e9) for cache in (small, large)]
    [137, 344]
    """
    return cache_bytes / (ttft_s * prefill_devices)


def ingress_bytes_per_s(cache_bytes: float, tpot_s: float, decode_devices: int = 1) -> float:
    """What each decoding device must receive at, so that the cache is there within one token's time.

    Examples
    --------
    Within a TPOT of 20 ms that is 12.5 times what leaves within a TTFT of 250 ms:

    >>> cache = kv_bytes(32, 4096, 32, 8, 32768)
    >>> ingress_bytes_per_s(cache, 0.02) / egress_bytes_per_s(cache, 0.25)
    12.5
    """
    return cache_bytes / (tpot_s * decode_devices)
