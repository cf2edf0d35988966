"""How a long prefill is divided between CPU and link."""

import pytest

from ktd.sgl.prefill_share import PassTimes, PrefillShare

LINK, ROW = 0.0002, 0.0005
EXPERTS, TOP_K, LAYERS, ABSENT = 128, 8, 10, 115


@pytest.fixture(name="share")
def share_fixture():
    return PrefillShare(ROW, num_experts=EXPERTS, top_k=TOP_K)


def answer(tokens, experts):
    """Of a layer, over the link, in seconds."""
    return LINK * ROW * tokens * (1 - (1 - experts / EXPERTS) ** TOP_K)


def teach(share, tokens, experts, cpu, other):
    """A pass on a host that costs so much, with ``experts`` of each layer on the CPU."""
    copied = ABSENT - experts
    share.learn(
        PassTimes(
            tokens,
            LAYERS,
            LAYERS * experts,
            cpu_seconds=LAYERS * experts * cpu,
            other_seconds=other,
            copied=LAYERS * copied,
            copy_seconds=LAYERS * (copied * LINK + answer(tokens, experts)),
        )
    )


def settled(share, tokens, cpu, other, *, passes=9):
    """The experts of a layer after some passes on such a host."""
    for _ in range(passes):
        teach(share, tokens, share.experts(tokens, ABSENT), cpu, other)
    return share.experts(tokens, ABSENT)


def test_before_anything_is_known_a_few_go_to_the_cpu(share):
    """Enough to learn from, too little to hold a pass up for long; the link is learnt too."""
    assert [share.experts(1024, absent) for absent in (0, 1, 2, 33, 99)] == [0, 0, 1, 4, 11]
    assert [share.experts(tokens, 99) for tokens in (2048, 4096, 16384)] == [7, 4, 4]


def test_the_pool_does_not_measure_short_passes_and_has_no_share_of_them(share):
    """Neither before others are measured nor after."""
    assert (share.experts(255, ABSENT), share.experts(256, ABSENT)) == (0, 13)
    settled(share, 1024, LINK / 4, 0.0)
    assert share.experts(256, ABSENT) > share.experts(255, ABSENT) == 0


def test_a_pass_without_copies_says_nothing_of_the_link(share):
    share.learn(PassTimes(1024, 1, 1, 0.001, 0.0, copied=0, copy_seconds=0.0))
    assert share.experts(1024, ABSENT) == 13


def test_the_link_is_known_from_the_first_pass_whatever_answers_pass_beside_it(share):
    for experts in (12, 0, 40):
        teach(share, 8192, experts, 0.0007, 0.004)
        assert share.link_seconds == pytest.approx(LINK)


def test_both_ways_take_equally_long_once_their_costs_are_known(share):
    """What the answer adds to the link, and what stands between two calls, among them."""
    cpu, other = 0.0007, 0.004
    chosen = settled(share, 8192, cpu, other)
    ways = other + chosen * cpu, (ABSENT - chosen) * LINK + answer(8192, chosen)
    assert abs(ways[0] - ways[1]) < cpu + LINK
    assert share.layer_seconds(8192, ABSENT, chosen) == pytest.approx(max(ways))
    for neighbour in (chosen - 1, chosen + 1):
        assert share.layer_seconds(8192, ABSENT, neighbour) >= max(ways)


@pytest.mark.parametrize("row", [0.0, ROW, 6 * ROW, 30 * ROW])
@pytest.mark.parametrize("cpu", [0.0, LINK / 5, LINK, 5 * LINK])
@pytest.mark.parametrize("other", [0.0, 0.004, 0.03])
def test_no_other_number_makes_a_shorter_layer(row, cpu, other):
    """Whatever the costs, up to answers that are larger than all they save.

    And where it would be less than a tenth shorter, the CPU gets nothing.
    """
    share = PrefillShare(row, num_experts=EXPERTS, top_k=TOP_K)
    copies = 1 + 2048 * (1 - (1 - 127 / EXPERTS) ** TOP_K) * row
    share.learn(PassTimes(2048, 1, 127, 127 * cpu, other, copied=1, copy_seconds=copies * LINK))
    for absent in (0, 1, 2, 60, 127):
        seconds = [share.layer_seconds(2048, absent, number) for number in range(absent + 1)]
        chosen = share.experts(2048, absent)
        if min(seconds) <= 0.9 * seconds[0]:
            assert seconds[chosen] == pytest.approx(min(seconds))
        else:
            assert chosen == 0


def test_what_stands_between_two_calls_is_reckoned_with(share):
    """Without it a layer would wait for the CPU longer than the link takes for all its experts."""
    chosen = settled(share, 8192, 0.0007, 0.006)
    assert chosen > 0
    assert 0.006 + chosen * 0.0007 < ABSENT * LINK


def test_a_cpu_too_slow_to_save_anything_gets_nothing(share):
    assert settled(share, 8192, 0.005, 0.0225) == 0


def test_an_answer_larger_than_what_it_saves_is_not_asked_for():
    """Of experts in few bits: the row of a token is as large as before."""
    share = PrefillShare(20 * ROW, num_experts=EXPERTS, top_k=TOP_K)
    share.learn(PassTimes(8192, 1, 12, 12 * 4 * LINK, 0.0, copied=103, copy_seconds=103 * LINK))
    assert share.experts(8192, ABSENT) == 0


def test_a_cpu_faster_than_the_link_gets_the_larger_part(share):
    assert settled(share, 1024, LINK / 4, 0.0, passes=12) > ABSENT / 2


def test_prompts_somewhat_longer_are_not_taken_for_those_that_were_measured(share):
    """Where a prompt is half as long again, the CPU would hold each layer up by as much."""
    chosen = settled(share, 4200, 0.0003, 0.002)
    assert share.cost(6300)[0] == pytest.approx(1.5 * 0.0003, rel=0.1)
    assert share.experts(6300, ABSENT) < chosen
    teach(share, 6300, 10, 0.0004, 0.003)
    assert share.cost(4200)[0] == pytest.approx(0.0003)


def test_more_tokens_cost_more_until_they_are_measured(share):
    teach(share, 1024, 10, 0.0002, 0.001)
    assert share.cost(8192) == (pytest.approx(8 * 0.0002), pytest.approx(8 * 0.001))
    assert share.cost(512) == (pytest.approx(0.0002), pytest.approx(0.001))
    teach(share, 8192, 10, 0.0007, 0.002)
    assert share.cost(8192) == (pytest.approx(0.0007), pytest.approx(0.002))
    assert share.cost(1024) == (pytest.approx(0.0002), pytest.approx(0.001))


def test_costs_follow_a_host_that_changes(share):
    teach(share, 1024, 3, 0.0002, 0.001)
    for _ in range(5):
        teach(share, 1024, 3, 0.0004, 0.003)
    assert share.cost(1024) == (
        pytest.approx(0.0004, rel=0.05),
        pytest.approx(0.003, rel=0.05),
    )


@pytest.mark.parametrize(("cpu", "other"), [(10.0, 0.004), (0.0007, 1.0)])
def test_one_disturbed_pass_changes_nothing(share, cpu, other):
    """Of the last three the middle one counts."""
    usual = settled(share, 8192, 0.0007, 0.004)
    teach(share, 8192, 1, cpu, other)
    assert share.experts(8192, ABSENT) == usual


@pytest.mark.parametrize(("cpu", "other"), [(0.02, 0.004), (0.0007, 0.1)])
def test_nor_do_three_for_good(share, cpu, other):
    """Nothing is measured while the CPU has nothing; a probe may cost more, the longer ago."""
    usual = settled(share, 8192, 0.0007, 0.004)
    for _ in range(3):
        teach(share, 8192, 4, cpu, other)
    assert share.experts(8192, ABSENT) == 0
    assert settled(share, 8192, 0.0007, 0.004, passes=200) == pytest.approx(usual, abs=1)


def test_now_and_then_a_few_experts_tell_what_they_cost_now(share):
    """Where that holds no layer up; a CPU that has become faster gets its share then."""
    teach(share, 8192, 6, 0.003, 0.004)
    given = []
    for _ in range(30):
        chosen = share.experts(8192, ABSENT)
        given.append(chosen)
        teach(share, 8192, chosen, 0.003, 0.004)
    assert set(given) == {0, 4}
    assert [n for n, chosen in enumerate(given) if chosen] == [8, 17, 26]
    assert settled(share, 8192, 0.0007, 0.004, passes=40) > 15


def test_an_answer_that_makes_the_link_slower_is_no_probe():
    """Of small experts, of which a few save less than their answers take."""
    share = PrefillShare(20 * ROW, num_experts=EXPERTS, top_k=TOP_K)
    share.learn(PassTimes(8192, 1, 12, 12 * 4 * LINK, 0.0, copied=103, copy_seconds=103 * LINK))
    for _ in range(40):
        assert share.experts(8192, ABSENT) == 0
        share.learn(PassTimes(8192, 1, 0, 0.0, 0.0, copied=ABSENT, copy_seconds=ABSENT * LINK))


def test_a_share_grows_step_by_step(share):
    """Experts that are chosen more cost more than those that were measured."""
    teach(share, 1024, 4, LINK / 4, 0.0)
    given = []
    for _ in range(6):
        given.append(share.experts(1024, ABSENT))
        teach(share, 1024, given[-1], LINK / 4, 0.0)
    assert given == [6, 8, 9, 12, 14, 18]


def test_costs_that_rise_with_the_share_do_not_hold_passes_up(share):
    """The most that a pass takes, of what it takes with the link alone."""
    longest = 0.0
    for number in range(200):
        chosen = share.experts(8192, ABSENT)
        cpu = 0.0002 * max(1, chosen)  # of each: all together, as the square
        teach(share, 8192, chosen, cpu, 0.004)
        if number > 20:
            link = LINK * (ABSENT - chosen) + answer(8192, chosen)
            longest = max(longest, link, 0.004 + chosen * cpu)
    assert longest <= 1.1 * ABSENT * LINK


def test_a_cpu_that_would_hold_a_layer_up_is_hardly_asked(share):
    """Now and then, as it may have become faster."""
    teach(share, 8192, 4, 0.02, 0.004)
    given = []
    for _ in range(500):
        given.append(share.experts(8192, ABSENT))
        teach(share, 8192, given[-1], 0.02, 0.004)
    alone = ABSENT * LINK
    longer = sum(max(0.0, 0.004 + 0.02 * experts - alone) for experts in given if experts)
    assert 0 < sum(given) <= 4 * 4
    assert longer <= 0.02 * len(given) * alone


def test_a_size_that_never_pays_is_tried_as_well(share):
    """By the costs of another size, which are not taken for its own."""
    teach(share, 1024, 12, 0.0003, 0.0005)
    believed = share.cost(4096)
    for _ in range(8):
        assert share.experts(8192, ABSENT) == 0
        teach(share, 8192, 0, 0.0, 0.0)
    assert share.experts(8192, ABSENT) == 4
    assert share.cost(4096) == believed


def test_all_in_slots_leaves_nothing_to_divide(share):
    assert share.experts(1024, 0) == 0
