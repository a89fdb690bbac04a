import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import storage
from tasks.archive import manifest as manifests
from tasks.archive.entries import Entry
from tasks.archive.manifest import Manifest, extend, part_size
from tasks.storage import locate


def entry(name, version="1"):
    return Entry(f"{name}.jpg", f"/photos/{name}.jpg", "file", b"/photos", 0, 100, version)


def entries(names, version="1"):
    return iter([entry(name, version) for name in names])


def belongings(manifest):
    """Image to the parts that it belongs to."""
    found = {}
    for part in manifest.parts():
        assert part.image_ids() == [e.image_id for e in part.entries()] and part.count() == len(part.entries())
        for image_id in part.image_ids():
            found.setdefault(image_id, []).append(part.name)
    return found


@pytest.fixture
def folder(tmp_path):
    return locate(str(tmp_path / "manifest"))


def test_a_first_listing_and_what_comes_later(folder):
    assert extend(Manifest(folder), entries("abc")).added == 3
    first = {file.path: storage.read_bytes(folder / file.path) for file in storage.list_files(folder)}
    listing = extend(Manifest(folder), entries("abxc"))
    assert (listing.added, listing.changed, listing.refreshed) == (1, 0, 0)
    manifest = Manifest(folder)
    assert manifest.num_images == 4
    assert set(belongings(manifest)) == {"a.jpg", "b.jpg", "c.jpg", "x.jpg"}
    for name, data in first.items():  # Append-only
        assert storage.read_bytes(folder / name) == data
    assert extend(Manifest(folder), entries("abxc")).added == 0
    assert len(list(storage.list_files(folder))) == 2


def test_entries_come_back_as_they_were(folder):
    odd = Entry("ü\n!/x", "s3://b/ü", "tar", b"/caf\xe9", 512, None, "etag", "note")
    extend(Manifest(folder), iter([odd]))
    (part,) = Manifest(folder).parts()
    assert part.entries() == (odd,)


def test_a_removed_image_stays_listed(folder):
    extend(Manifest(folder), entries("abc"))
    assert extend(Manifest(folder), entries("ac")).added == 0
    assert Manifest(folder).num_images == 3


def test_sizes_of_parts():
    assert [part_size(n) for n in (1, 10, 256, 400, 4096, 65_536)] == [2, 2, 4, 7, 64, 64]


def test_parts_are_cut_once(folder, monkeypatch):
    monkeypatch.setattr(manifests, "SEGMENT_IMAGES", 1000)
    extend(Manifest(folder), entries(range(2500)))
    parts = list(Manifest(folder).parts())
    assert [len({p.name for p in parts}), sum(p.num_listed for p in parts)] == [len(parts), 2500]
    assert max(p.num_listed for p in parts) == part_size(1000)
    before = {p.name: p.image_ids() for p in parts}
    extend(Manifest(folder), entries(range(-30, 2500)))
    after = {p.name: p.image_ids() for p in Manifest(folder).parts()}
    assert before.items() <= after.items() and sum(map(len, after.values())) == 2530


def test_equal_listings_at_the_same_time_write_the_same_file(folder):
    one, two = Manifest(folder), Manifest(folder)
    extend(one, entries("abc"))
    extend(two, entries("abc"))
    assert len(list(storage.list_files(folder))) == 1


def test_unequal_listings_at_the_same_time_leave_each_image_in_one_part(folder):
    one, two = Manifest(folder), Manifest(folder)
    extend(one, entries("abcdefghij"))
    extend(two, entries("xabcdefghij"))  # An image came between the two
    manifest = Manifest(folder)
    assert len(manifest.segments) == 2 and manifest.num_images == 11
    found = belongings(manifest)
    assert len(found) == 11 and all(len(parts) == 1 for parts in found.values())
    first = min(manifest.segments, key=lambda s: s.name).name
    assert found["a.jpg"][0].startswith(first)  # The stated rule: the first in the order of names


def test_a_replaced_photograph_is_noticed_and_listed_again_on_request(folder):
    extend(Manifest(folder), entries("abc"))
    again = [entry("a"), entry("b", "2"), entry("c")]
    assert extend(Manifest(folder), iter(again)).changed == 1
    assert len(Manifest(folder).segments) == 1
    listing = extend(Manifest(folder), iter(again), refresh_changed=True)
    assert (listing.changed, listing.refreshed, listing.added) == (1, 1, 0)
    manifest = Manifest(folder)
    assert manifest.num_images == 3
    refresh = next(s.name for s in manifest.segments if s.is_refresh)
    assert belongings(manifest)["b.jpg"][0].startswith(refresh)
    assert extend(manifest, iter(again), refresh_changed=True).changed == 0


def test_a_limit_counts_all_that_is_listed(folder):
    assert extend(Manifest(folder), entries(range(20)), limit=7).added == 7
    assert extend(Manifest(folder), entries(range(20)), limit=7).added == 0
    assert extend(Manifest(folder), entries(range(20)), limit=9).added == 2
    assert extend(Manifest(folder), entries(range(20))).added == 11
    assert Manifest(folder).num_images == 20


def test_two_identities_that_share_half_a_hash_are_two(folder, monkeypatch):
    real = manifests._hash_ids

    def colliding(ids):
        hashes = real(ids).copy()
        hashes[:, 0] = 7
        return hashes

    monkeypatch.setattr(manifests, "_hash_ids", colliding)
    extend(Manifest(folder), entries("abcdef"))
    assert extend(Manifest(folder), entries("abcdefg")).added == 1
    assert len(belongings(Manifest(folder))) == 7


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 30), min_size=1), st.booleans(), st.integers(0, 2), st.booleans()), max_size=6
    )
)
def test_whatever_the_order_of_listings_each_image_has_one_part(tmp_path_factory, listings):
    folder = locate(str(tmp_path_factory.mktemp("manifest")))
    stale = Manifest(folder)
    seen, parts_before = set(), {}
    for names, from_stale, version, refresh in listings:
        # A stale manifest is what a listing at the same time as the one before works from
        base = stale if from_stale else Manifest(folder)
        stale = Manifest(folder)
        extend(base, entries(sorted(names), str(version)), refresh_changed=refresh)
        seen |= {f"{n}.jpg" for n in names}
        manifest = Manifest(folder)
        found = belongings(manifest)
        assert set(found) == seen and manifest.num_images == len(seen)
        assert all(len(parts) == 1 for parts in found.values())
        parts = {part.name: part.num_listed for part in manifest.parts()}
        assert parts_before.items() <= parts.items()  # Never cut anew
        parts_before = parts


def test_slices_of_a_part_keep_their_place_when_an_image_leaves(folder):
    extend(Manifest(folder), entries("ab"))
    extend(Manifest(folder), iter([entry("a", "2")]), refresh_changed=True)
    part = next(iter(Manifest(folder).parts()))
    halves = [part.image_ids(start, end) for start, end in itertools.pairwise([0, 1, 2])]
    assert halves == [[], ["b.jpg"]] and (part.count(0, 1), part.count(0, 2)) == (0, 1)
