"""Which seed clips a round rolls out, and from which random streams."""

from collections import Counter

from flows.rollout import draw
from model.rng import derive_seed

CLIPS = [f"clip-{n}" for n in range(7)]


def test_every_clip_has_its_turn_before_one_comes_again():
    jobs = draw(CLIPS, 17, 0, "r1")
    assert len(jobs) == 17
    assert {clip for clip, _ in jobs[:7]} == {clip for clip, _ in jobs[7:14]} == set(CLIPS)
    assert set(Counter(clip for clip, _ in jobs).values()) == {2, 3}


def test_every_rollout_has_a_random_stream_of_its_own_across_rounds():
    streams = [stream for name in ("r1", "r2") for _, stream in draw(CLIPS, 17, 0, name)]
    assert len(set(streams)) == len({derive_seed(stream) for stream in streams}) == 34


def test_the_draw_follows_from_seed_and_round():
    assert draw(CLIPS, 10, 0, "r1") == draw(CLIPS, 10, 0, "r1")
    orders = {tuple(clip for clip, _ in draw(CLIPS, 7, *of)) for of in ((0, "r1"), (0, "r2"), (1, "r1"))}
    assert len(orders) == 3


def test_more_rollouts_begin_with_the_same_ones():
    assert draw(CLIPS, 17, 0, "r1")[:5] == draw(CLIPS, 5, 0, "r1")


def test_few_are_drawn_from_all_clips():
    firsts = {draw(CLIPS, 1, seed, "r1")[0][0] for seed in range(40)}
    assert firsts == set(CLIPS)


def test_none_is_none():
    assert draw(CLIPS, 0, 0, "r1") == []
