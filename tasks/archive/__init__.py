"""What an archive is made of: images as they lie there, the lists of them, the rows that come of them."""
