"""Collectives are counted in the text of a program: kinds, bytes, loops and branches."""

import pytest

from trainer.phases.costs.collectives import Collective, count_collectives

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %g = bf16[16,4]{1,0} all-gather(%p), dimensions={0}
}

%cond.1 (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
}

%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%p), condition=%cond.1, body=%body.1, backend_config=KNOWN
}

ENTRY %main.5 (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %s = (f32[8]{0}, /*index=1*/pred[3]{0}) all-reduce(%x, %x), to_apply=%add
  %a = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[64]{0} all-gather-done(%a)
  %n = f32[8]{0} get-tuple-element(%all-reduce), index=0, metadata={op_name="all-reduce(x)"}
  ROOT %w = (s32[], f32[8]{0}) while(%x), condition=%cond.1, body=%outer, backend_config=THRICE
}
"""


@pytest.mark.parametrize(("known", "times"), [('{"known_trip_count":{"n":"5"}}', 15), ("{}", 3)])
def test_a_loop_counts_as_often_as_it_runs(known, times):
    text = PROGRAM.replace("KNOWN", known).replace("THRICE", '{"known_trip_count":{"n":"3"}}')
    assert count_collectives(text) == {
        "all-gather": Collective(times + 1, times * 16 * 4 * 2 + 64 * 4),
        "all-reduce": Collective(1, 8 * 4 + 3),
    }


def test_a_program_of_one_device_exchanges_nothing():
    assert count_collectives("ENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8]{0}\n}") == {}
