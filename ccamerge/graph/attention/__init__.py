"""Attention: where a program does it, how its features lie in heads, and what maps it allows.

From the linear operations that write queries, keys and values to the value that attention makes of
these, a program is one *core*: whoever reads its code may find any spelling, fused or grouped
projections, rotations, masks, tables. What is allowed is therefore not read but tried: a core is a
function of queries, keys and values, which is run with these mapped.
"""
