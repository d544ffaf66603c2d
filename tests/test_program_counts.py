"""Counting what a compiled program launches, on a program written by hand."""

from emodistill.train.program_counts import Collective, count_kernels

PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%arg), index=1
  %one = f32[8]{0} fusion(%x), calls=%fused, metadata={op_name="while/tree_attention/add"}
  %two = f32[8]{0} custom-call(%one), custom_call_target="__cublas$gemm"
  ROOT %out = (s32[], f32[8]{0}) tuple(%i, %two)
}

%condition (arg.1: (s32[], f32[8])) -> pred[] {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion(%arg.1), kind=kLoop, calls=%fused
}

ENTRY %main (x: f32[8]) -> f32[16] {
  %x.1 = f32[8]{0} parameter(0)
  %start = (s32[], f32[8]{0}) tuple(%zero, %x.1)
  %known = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body, TEN_TURNS
  %open = (s32[], /*index=1*/f32[8]{0}) while(%known), condition=%condition, body=%body
  %y = f32[8]{0} get-tuple-element(%open), index=1
  %gather = (f32[8]{0}, f32[16]{0}) all-gather-start(%y), dimensions={0}
  ROOT %done = f32[16]{0} all-gather-done(%gather)
}
""".replace("TEN_TURNS", 'backend_config={"known_trip_count":{"n":"10"}}')


def test_loops_count_as_often_as_they_turn():
    counts = count_kernels(PROGRAM, unknown_turns=5)
    # Where the number of turns is not known, each turn asks whether it is the last.
    assert counts.num_kernels == 10 * 2 + 5 * (2 + 1) + 1
    assert counts.num_attention_kernels == 10 + 5
    assert counts.collectives == {"all-gather": Collective(1, 16 * 4)}


def test_programs_add_up():
    once = count_kernels(PROGRAM, unknown_turns=5)
    twice = once + once
    assert twice.num_kernels == 2 * once.num_kernels
    assert twice.collectives == {"all-gather": Collective(2, 128)}
