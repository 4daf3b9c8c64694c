"""A distillation run from its config: `build` makes the parts, `run` measures, trains and measures again.

`resume` continues a run from its newest checkpoint, `teachers` measures the teachers, `checks` compares built parts.
"""
