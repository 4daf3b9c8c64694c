"""A distillation run from its config: `build` makes the parts, `run` measures, trains and measures again.

`resume` lets a run go on from its newest checkpoint, `teachers` measures the teachers, `checks` compares built parts.
"""
