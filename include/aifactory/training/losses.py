"""Every second of a training is productive or lost, and a lost one has a code.

    goodput = seconds of steps that were done for the first time ÷ seconds that the training took

A step's own Python and its computing are productive. Its wait for data or for other processes, checkpoints, steps that
an earlier attempt had done already, and everything before the first step and after the last are lost.
"""

from __future__ import annotations

from enum import StrEnum

from aifactory.recipes.clock import STEP_PARTS, Part, Spent


class LossCode(StrEnum):
    """What a second was lost to; `.sentence` says it in plain words."""

    sentence: str

    def __new__(cls, code: str, sentence: str) -> LossCode:
        """One member: its code is its value, the sentence goes with it."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    WAIT_FOR_PLACE = "WAIT_FOR_PLACE", "No program ran: the training waited for a place, or had just been killed."
    START = "START", "The program had started and not yet stepped: imports, reading the data, preparing it."
    DATA_WAIT = "DATA_WAIT", "The step loop waited for the rows of its batch."
    COMMUNICATION = "COMMUNICATION", "The step loop waited for the other processes of its training."
    CHECKPOINT = "CHECKPOINT", "The step loop stood still for a checkpoint."
    REWORK = "REWORK", "Steps were done again that an attempt before had done and lost."
    EXPORT = "EXPORT", "The last step was done: the model was exported, proved and packed, or the program ended."


_LOST = {
    Part.START: LossCode.START,
    Part.READ: LossCode.START,
    Part.PREPARE: LossCode.START,
    Part.DATA_WAIT: LossCode.DATA_WAIT,
    Part.COMMUNICATION: LossCode.COMMUNICATION,
    Part.CHECKPOINT: LossCode.CHECKPOINT,
    Part.EXPORT: LossCode.EXPORT,
}


def account(spent: Spent) -> tuple[int, dict[LossCode, int]]:
    """Productive nanoseconds, and lost ones by code; together they are all of an attempt's, to the nanosecond."""
    again = [spent.again_ns[part] if part in STEP_PARTS else 0 for part in Part]
    lost = dict.fromkeys(LossCode, 0) | {LossCode.REWORK: sum(again)}
    productive = 0
    for part in Part:
        ns = spent.ns[part] - again[part]
        if part in _LOST:
            lost[_LOST[part]] += ns
        else:
            productive += ns
    return productive, lost
