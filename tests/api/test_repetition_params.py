"""RepetitionDetectionParams: what is taken, what is refused, and what the core gets."""

import pytest

from pagedkv import RepetitionDetectionParams, SamplingParams


def test_an_object_and_a_dict_are_the_same():
    given = {"max_pattern_size": 5, "min_count": 3}
    params = SamplingParams(repetition_detection=given)
    assert params.repetition_detection == RepetitionDetectionParams(**given)
    assert params == SamplingParams(repetition_detection=RepetitionDetectionParams(**given))


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, None),
        ({"max_pattern_size": 0, "min_count": 7}, None),
        ({"max_pattern_size": 5, "min_count": 2}, (1, 5, 2)),
        ({"max_pattern_size": 5, "min_pattern_size": 5, "min_count": 4}, (5, 5, 4)),
        ({"max_pattern_size": 32_768, "min_count": 2}, (1, 32_768, 2)),
    ],
)
def test_a_shortest_pattern_of_0_is_1_and_a_longest_of_0_is_off(given, limits):
    assert RepetitionDetectionParams(**given).limits() == limits


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"max_pattern_size": -1}, ValueError, "max_pattern_size must be non-negative, got -1"),
        ({"min_count": -1}, ValueError, "min_count must be non-negative, got -1"),
        ({"max_pattern_size": 2.0}, TypeError, "max_pattern_size must be an int, got 2.0"),
        ({"min_count": True}, TypeError, "min_count must be an int, got True"),
        (
            {"min_pattern_size": 4, "max_pattern_size": 3, "min_count": 2},
            ValueError,
            r"min_pattern_size must be at most max_pattern_size \(3\), got 4; set both to 0",
        ),
        (
            {"max_pattern_size": 3, "min_count": 1},
            ValueError,
            "min_count must be at least 2 with max_pattern_size=3, got 1",
        ),
        (
            {"max_pattern_size": 32_768, "min_count": 3},
            ValueError,
            "max_pattern_size x min_count must be at most 65536, got 32768 x 3; lower one",
        ),
        (
            {"max_pattern_size": 2**80, "min_count": 2**80},
            ValueError,
            "max_pattern_size x min_count must be at most 65536",
        ),
        ({"max_patern_size": 3}, TypeError, "did you mean 'max_pattern_size'"),
    ],
)
def test_a_wrong_value_is_named_with_its_bound(given, error, message):
    with pytest.raises(error, match=message):
        SamplingParams(repetition_detection=given)


@pytest.mark.parametrize("value", [5, "on", [3, 2], object()])
def test_something_else_is_named(value):
    with pytest.raises(TypeError, match="repetition_detection must be a RepetitionDetectionParams"):
        SamplingParams(repetition_detection=value)


def test_a_field_that_was_reassigned_is_checked_again_and_a_clone_is_apart():
    params = SamplingParams(repetition_detection={"max_pattern_size": 3, "min_count": 2})
    clone = params.clone()
    params.repetition_detection.min_count = 0
    with pytest.raises(ValueError, match="min_count must be at least 2"):
        params.verify()
    clone.verify()
