"""Image files and label maps: decoding, colour, TIFF, masks as PNG and as run lengths, pictures of both."""
