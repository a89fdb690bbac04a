"""A sample of what strangers' files may hold: `make fuzz` reads all of it."""

from tests.hostile import images, trial


def ended_well(groups: dict[str, trial.Group]) -> bool:
    """Whether every file came to an allowed end in silence; says which did not."""
    faults = [fault for group in groups.values() for fault in group.faults]
    assert faults == []
    assert {name: group.printed for name, group in groups.items() if group.printed} == {}
    return trial.sound(groups)


def test_hostile_images_end_as_pixels_or_with_a_reason():
    groups = trial.run("images", range(400), seed=2)
    assert ended_well(groups)
    assert set(groups) == set(images.originals()) and all(group.files == 50 for group in groups.values())
    assert all(group.outcomes["decoded"] and group.files > group.outcomes["decoded"] for group in groups.values())


def test_hostile_files_of_models_datasets_and_results_are_refused_in_a_sentence():
    groups = trial.run("files", range(280), seed=2, workers=1)  # Each imports torch
    assert ended_well(groups)
    assert len(groups) == 14 and all(group.files == 20 for group in groups.values())
    assert all(group.outcomes["read"] < group.files for group in groups.values())


def test_the_trial_notices_what_it_is_there_for(monkeypatch):
    monkeypatch.setattr(trial, "TIME_LIMIT_S", 3.0)
    found = trial.run("dummies", range(6), seed=0, workers=1)["dummy"]
    assert (found.files, found.crashes, found.hangs, found.printed) == (6, 2, 1, 1)
    assert found.outcomes["refused"] == 1 and found.outcomes["fault"] == 2
    assert not trial.sound({"dummy": found})
    said = " ".join(found.faults)
    for wanted in ("dummies 1 (dummy): its process ended", "dummies 2 (dummy): no answer", "ZeroDivisionError"):
        assert wanted in said


def test_the_same_number_gives_the_same_file():
    first, again = ([images.make(number, 5) for number in range(40)] for _ in range(2))
    assert first == again and images.make(0, 6) != first[0]
