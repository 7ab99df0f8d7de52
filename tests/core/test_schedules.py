"""rho over training: values at the corners, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_mm.core.schedules import RhoPhases, RhoSchedule, rho_schedule

MOVING = dict(start=0.5, end=2.5, begin=0.2, finish=0.6)
parts = st.floats(0, 1)


class TestValues:
    @pytest.mark.parametrize(
        'kind, progress, expected',
        [
            ('linear', 0, 0.5),
            ('linear', 0.2, 0.5),
            ('linear', 0.3, 1.0),
            ('linear', 0.4, 1.5),
            ('linear', 0.5, 2.0),
            ('linear', 0.6, 2.5),
            ('linear', 1, 2.5),
            ('cosine', 0, 0.5),
            ('cosine', 0.2, 0.5),
            ('cosine', 0.4, 1.5),
            ('cosine', 0.3, 0.5 + 1 - math.sqrt(0.5)),
            ('cosine', 0.5, 0.5 + 1 + math.sqrt(0.5)),
            ('cosine', 0.6, 2.5),
            ('cosine', 1, 2.5),
            ('constant', 0, 2.5),
            ('constant', 0.2, 2.5),
            ('constant', 0.4, 2.5),
            ('constant', 0.6, 2.5),
            ('constant', 1, 2.5),
        ],
    )
    def test_corners(self, kind, progress, expected):
        assert RhoSchedule(kind, **MOVING).at(progress) == pytest.approx(expected)

    @pytest.mark.parametrize('kind', ['linear', 'cosine'])
    def test_downwards(self, kind):
        schedule = RhoSchedule(kind, start=3, end=1)
        values = [schedule.at(progress) for progress in (0, 0.5, 1)]
        assert values == pytest.approx([3, 2, 1])

    @pytest.mark.parametrize('kind', ['linear', 'cosine'])
    @pytest.mark.parametrize('progress, expected', [(-0.5, 0.5), (1.5, 2.5)])
    def test_outside_of_training(self, kind, progress, expected):
        assert RhoSchedule(kind, **MOVING).at(progress) == pytest.approx(expected)

    @given(first=parts, second=parts, kind=st.sampled_from(['linear', 'cosine', 'gaussian']))
    def test_never_turns_back(self, first, second, kind):
        schedule = RhoSchedule(kind, **MOVING)
        early, late = (schedule.at(part) for part in sorted([first, second]))
        assert 0.5 <= early <= late + 1e-12 <= 2.5 + 2e-12

    @given(offset=st.floats(0, 0.2), kind=st.sampled_from(['linear', 'cosine']))
    def test_turns_about_the_middle(self, offset, kind):
        schedule = RhoSchedule(kind, **MOVING)
        assert schedule.at(0.4 - offset) + schedule.at(0.4 + offset) == pytest.approx(3)


class TestFromConfig:
    @pytest.mark.parametrize('number', [0, 1, 0.25, 3])
    def test_number(self, number):
        schedule = RhoSchedule.from_config(number)
        assert [schedule.at(part) for part in (0, 0.5, 1)] == [number] * 3
        assert schedule.is_constant

    @pytest.mark.parametrize('kind', ['constant', 'linear', 'cosine'])
    def test_dict(self, kind):
        config = dict(type=kind, **MOVING)
        assert RhoSchedule.from_config(config) == RhoSchedule(kind, **MOVING)
        assert config == dict(type=kind, **MOVING)  # not consumed

    def test_dict_of_defaults(self):
        """Linear from 0 to 1 over all of training."""
        schedule = RhoSchedule.from_config({})
        values = [schedule.at(part) for part in (0, 0.25, 1)]
        assert values == pytest.approx([0, 0.25, 1])

    @pytest.mark.parametrize('rho', [True, False, None, '1', [1], (0, 1), {1}])
    def test_neither_number_nor_dict(self, rho):
        with pytest.raises(ValueError, match='expected a number or a dict') as error:
            RhoSchedule.from_config(rho)
        assert f'rho is {rho!r};' in str(error.value)

    @pytest.mark.parametrize('rho', [-1, -0.001, math.nan, math.inf, -math.inf])
    def test_number_out_of_range(self, rho):
        with pytest.raises(ValueError, match=f'rho has end={float(rho)};.*>= 0'):
            RhoSchedule.from_config(rho)

    @pytest.mark.parametrize('name', ['start', 'end'])
    @pytest.mark.parametrize('value', [-1, math.nan, math.inf, '1', None, True, [0]])
    def test_end_of_a_dict(self, name, value):
        with pytest.raises(ValueError, match='expected a finite number >= 0') as error:
            RhoSchedule.from_config({name: value})
        assert f'rho has {name}={value!r};' in str(error.value)

    @pytest.mark.parametrize(
        'begin, finish',
        [
            (0.5, 0.5),
            (0.6, 0.5),
            (-0.1, 0.5),
            (0.5, 1.1),
            (1, 1),
            (math.nan, 1),
            (0, math.nan),
            ('0', 1),
            (0, None),
        ],
    )
    def test_interval(self, begin, finish):
        with pytest.raises(ValueError, match='0 <= begin < finish <= 1') as error:
            RhoSchedule.from_config(dict(begin=begin, finish=finish))
        assert f'from {begin!r} to {finish!r};' in str(error.value)

    @pytest.mark.parametrize('kind', ['step', 'Linear', None, 1])
    def test_unknown_type(self, kind):
        with pytest.raises(ValueError, match='constant.*linear.*cosine') as error:
            RhoSchedule.from_config(dict(type=kind))
        assert f'type={kind!r};' in str(error.value)

    def test_unknown_keys(self):
        with pytest.raises(ValueError, match=r"\['kind', 'until'\]"):
            RhoSchedule.from_config(dict(until=0.5, kind='linear'))


class TestKinds:
    @pytest.mark.parametrize(
        'schedule, constant',
        [
            (RhoSchedule('constant', start=1, end=0), True),
            (RhoSchedule('constant', end=2), True),
            (RhoSchedule('cosine', start=2, end=2), True),
            (RhoSchedule('linear', start=1, end=0), False),
            (RhoSchedule('cosine', start=0, end=1), False),
        ],
    )
    def test_constant(self, schedule, constant):
        assert schedule.is_constant == constant


class TestGaussian:
    def test_up_and_down_as_published(self):
        """exp(-5 (1 - t)^2) and exp(-12.5 t^2)."""
        up, down = RhoSchedule('gaussian', **MOVING), RhoSchedule('gaussian', start=2, end=0)
        for part in (0.1, 0.5, 0.9):
            expected = 0.5 + 2 * math.exp(-5 * (1 - part) ** 2)
            assert up.at(0.2 + 0.4 * part) == pytest.approx(expected)
            assert down.at(part) == pytest.approx(2 * math.exp(-12.5 * part**2))
        assert [up.at(0.2), up.at(0.6), down.at(0), down.at(1)] == [0.5, 2.5, 2, 0]


class TestPhases:
    UP = dict(type='gaussian', start=0, end=2, begin=0.1, finish=0.4)
    DOWN = dict(type='linear', start=2, end=0, begin=0.8, finish=1)

    def test_up_held_and_down(self):
        schedule = rho_schedule([self.UP, self.DOWN])
        up = RhoSchedule.from_config(self.UP)
        assert not schedule.is_constant
        found = [schedule.at(part) for part in (0, 0.1, 0.3, 0.4, 0.6, 0.8, 0.9, 1)]
        assert found == pytest.approx([0, 0, up.at(0.3), 2, 2, 2, 1, 0])

    @given(first=parts, second=parts)
    def test_without_jumps(self, first, second):
        schedule = rho_schedule([dict(self.UP, type='cosine'), self.DOWN])
        # Nowhere steeper than the steepest phase.
        steepest = max(math.pi / 2 * 2 / 0.3, 2 / 0.2)
        change = abs(schedule.at(first) - schedule.at(second))
        assert change <= steepest * abs(first - second) + 1e-9

    @pytest.mark.parametrize(
        ('phases', 'message'),
        [
            ([DOWN, UP], 'in the order of time'),
            ([UP, dict(DOWN, start=1)], 'ends at 2 before one that starts at 1'),
            ([dict(type='constant', end=2), DOWN], 'expected moving phases'),
            ([dict(UP, finish=0.9), DOWN], 'in the order of time'),
        ],
    )
    def test_phases_that_do_not_follow_each_other(self, phases, message):
        with pytest.raises(ValueError, match=message):
            rho_schedule(phases)

    def test_numbers_and_dicts_are_as_before(self):
        assert rho_schedule(2) == RhoSchedule.from_config(2)
        assert rho_schedule(self.UP) == RhoSchedule.from_config(self.UP)
        assert isinstance(rho_schedule([self.UP]), RhoPhases)
        with pytest.raises(ValueError, match='expected a number or a dict'):
            rho_schedule([1, 2])
