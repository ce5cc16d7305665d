"""The argument structs of csrc/kernels/cuda/launch.h, for callers of launches from Python.

Used by test_cuda_*.py, on the emulator or a GPU, and by benchmarks/h200.py; so nothing here imports
pytest.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p


def struct(name: str, fields: str) -> type[ctypes.Structure]:
    """A struct of launch.h from its members: `p` pointer, `i` int, `l` int64, `f` float."""
    kinds = {"p": c_void_p, "i": c_int, "l": c_int64, "f": c_float}
    members = [word.split(":") for word in fields.split()]
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kinds[k]) for n, k in members]})


Embed = struct("Embed", "table:p ids:p out:p ldo:l n:i D:i half:i add:i scale:f")
Enter = struct("Enter", "x:p ldx:l w:p b:p out:p n:i D:i half:i norm:i eps:f")
AddNorm = struct("AddNorm", "y:p ldy:l w:p b:p x:p ldx:l n:i D:i norm:i eps:f scale:f")
NormRows = struct("NormRows", "x:p ldx:l w:p b:p out:p ldo:l n:i D:i norm:i eps:f")
Elements = struct("Elements", "x:p y:p out:p n:i op:i act:i scale:f cap:f")
Gather = struct("Gather", "x:p ldx:l from_:p out:p ldo:l n:i D:i")
Heads = struct(
    "Heads",
    "y:p ldy:l q:p ldq:l pos:p page:p q_norm:p k_norm:p cos:p sin:p base:p page_bytes:l "
    "head_bytes:l k_bytes:l n:i n_heads:i n_kv_heads:i d:i d_rope:i interleaved:i norm:i turned:i "
    "eps:f grow:f grow_every:i",
)
Attend = struct(
    "Attend",
    "q:p ldq:l out:p ldo:l pos:p table:p first:p sinks:p items:p partial:p tiles:p base:p "
    "page_bytes:l head_bytes:l k_bytes:l n:i n_heads:i n_kv_heads:i d:i n_tiles:i window:i scale:f "
    "softcap:f",
)
AttendDevice = struct("AttendDevice", "n_sms:i smem:i")
Chunks = struct("Chunks", "pos:p items:p n:i")
Product = struct(
    "Product",
    "a:p w:p bias:p out:p ldo:l M:i N:i K:i kind:i act:i paired:i scale:f softcap:f",
)
FinishSums = struct(
    "FinishSums",
    "a:p w:p bias:p out:p ldo:l M:i N:i K:i kind:i act:i paired:i scale:f softcap:f y:p ldy:l",
)
LtProduct = struct(  # la_cublas_product of cublaslt.h
    "LtProduct",
    "a:p w:p a_scale:p w_scale:p bias:p out:p ldo:l room:p room_bytes:l M:i N:i K:i type:i "
    "alpha:f beta:f a_align:i",
)
Pick = struct("Pick", "logits:p drawn:p tops:p ids:p values:p n:i V:i k:i")  # of sample.h
Form = struct("Form", "group:i has_offset:i wide:i unit_bytes:l")  # la_w4_form
