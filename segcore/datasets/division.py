"""The division of images into train and val where nothing else divides them."""

import hashlib
from collections.abc import Iterable

VAL_SHARE = 0.1
"""Share of the images that becomes val, 0..1."""


def divide(ids: Iterable[str], val_share: float = VAL_SHARE) -> dict[str, list[str]]:
    """Lists train and val, by a digest of each id: an image that is added later moves no other one.

    Of so few that none would come to val, the one that is nearest to it does.
    """
    digests = {image_id: hashlib.sha256(b"split " + image_id.encode()).digest() for image_id in sorted(ids)}
    shares = {image_id: int.from_bytes(digest[:8], "big") / 2**64 for image_id, digest in digests.items()}
    val = {image_id for image_id, share in shares.items() if share < val_share}
    if not val and val_share > 0 and len(shares) > 1:
        val = {min(shares, key=lambda image_id: shares[image_id])}
    lists = {"train": [i for i in shares if i not in val], "val": [i for i in shares if i in val]}
    return {name: members for name, members in lists.items() if members}
