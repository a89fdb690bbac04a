"""Datasets: fetched, unpacked, checked, written as shards."""
