"""What the model of the CUDA kernels' time counts: loops of code, instructions without polling, bytes."""

from __future__ import annotations

import pytest

from benchmarks import step_counts
from benchmarks.step_counts import (
    Instruction,
    Step,
    a_step,
    loop_length,
    ptx_loop,
    sass_loops,
)


def straight(*opcodes: str) -> list[Instruction]:
    return [Instruction("", opcode) for opcode in opcodes]


def test_a_loop_is_what_leads_from_its_barrier_back_to_it():
    """Also what the compiler put behind the loop; neither what leads there nor what follows."""
    code = [
        *straight("MOV", "BAR", "MOV"),
        Instruction("top", "LD"),
        Instruction("", "BRA", "cold"),
        Instruction("back", "BAR"),
        *straight("FADD"),
        Instruction("", "BRA", "top"),
        *straight("ST"),
        Instruction("", "EXIT", always=True),
        Instruction("cold", "NANOSLEEP"),
        Instruction("", "BRA", "back", always=True),
    ]
    assert loop_length(code, "BAR") == 7


def test_a_loop_of_two_steps_is_halved():
    code = [
        Instruction("top", "BAR"),
        *straight("ADD", "BAR", "ADD", "ADD"),
        Instruction("", "BRA", "top"),
    ]
    assert loop_length(code, "BAR") == 3


def test_code_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="no loop holds a barrier"):
        loop_length(straight("BAR", "EXIT"), "BAR")


def test_ptx_is_read():
    text = """
        mov.u32 %r1, 0; // before
    $L__BB0_1:
        add.s32 %r1, %r1, 1;
        bar.sync 0;
        bar.warp.sync -1;
        @%p1 bra $L__BB0_1;
        ret;
    """
    assert ptx_loop(text) == 4


def test_machine_code_is_read():
    text = """
            Function : grid_forward
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E R2, [R4] ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   EXIT ;
            Function : each
        /*0000*/                   EXIT ;
    """
    assert sass_loops(text) == {"grid_forward": 3}


def counted(regime: str, backward: bool, **settings: int) -> Step:
    step = a_step("lstm", "float16", 16, 64, regime, backward, "sm_90", **settings)
    assert isinstance(step, Step)
    return step


def test_polling_is_counted_apart():
    """Another schedule polls more or less often; what a step does stays what it is."""
    one, other = (counted("grid-resident", False, schedule_seed=seed).counters for seed in (1, 2))
    assert one["polling"] != other["polling"]
    assert one["polling"] > 0
    without = [each["instructions"] - each["polling"] for each in (one, other)]
    assert without[0] == pytest.approx(without[1], rel=0.03)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident"])
def test_the_plan_knows_what_a_step_moves(regime: str, backward: bool):
    step = counted(regime, backward)
    assert step.exchanged_bytes == pytest.approx(step.work.exchanged_bytes, rel=0.01)
    assert step.shared_bytes == pytest.approx(step.work.shared_bytes, rel=0.05)
    # The plan counts what training moves. Here forward saves no gates and no c, and backward is
    # given gradients of c; words that are sent are counted where they are stored, too.
    units, unit_blocks = 16 * 64, int(step.plan.split()[1])
    beside = units * 4 if backward else -units * (4 * 2 + 4)
    sent = step.exchanged_bytes / unit_blocks
    assert step.streamed_bytes == pytest.approx(step.work.streamed_bytes + beside + sent, rel=0.02)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("regime", ["block-resident", "grid-resident/16"])
def test_the_table_says_what_is_counted(
    monkeypatch: pytest.MonkeyPatch, regime: str, backward: bool
):
    """A changed kernel needs a new table: python -m benchmarks.step_counts."""
    step = counted(regime, backward)
    monkeypatch.setattr(step_counts, "assembled", lambda: {step.kernel: 1.0})
    # Machine code has 1.1 to 1.6 instructions for one of PTX; the assembler is not run here.
    assert 1.05 < step.work.slots / step.slots < 1.7
