"""The archive job: what there is, what remains of it, doing it, proof that every image has its row."""
