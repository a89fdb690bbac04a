"""The stream of photographs through the cluster: read, score, refine, commit."""
