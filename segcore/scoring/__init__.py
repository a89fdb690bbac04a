"""From pixels to class scores: batches, devices, test-time augmentation, and what running out of memory looks like."""
