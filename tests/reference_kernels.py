"""NumPy float64 twins of packing, activation rows and products: the specification of those slots.

Formats and layouts are read from csrc/kernels/kernels.h and csrc/base/dtype.h, not from the C code.
GEMM_SLOTS names every slot of the kernel list that this file specifies; test_gemm.py walks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = range(13)
IQ4_NL, IQ4_XS, MXFP4, KEEP = range(13, 17)
F16_I8 = KEEP  # scale type: fp16 per 256 k times int8 per group
E8M0 = KEEP + 1  # scale type: a power of two per group, by its exponent
PACK_F32, PACK_F16, PACK_BF16, PACK_I8, PACK_I4, PACK_F8, PACK_I5, PACK_I6 = range(8)
PACK_NF4, PACK_FP4, PACK_E2M1, PACK_IQ4 = range(8, 12)
_SIGNED = np.concatenate([np.ones(8), -np.ones(8)])
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
NF4 += [0.7229568362236023, 1.0]
TABLES = {
    PACK_NF4: np.array(NF4),
    PACK_FP4: np.array([0, 1, 128, 192, 64, 96, 32, 48] * 2) * _SIGNED,
    PACK_E2M1: np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] * 2) * _SIGNED,
    PACK_IQ4: np.array(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float64
    ),
}
BITS = {PACK_I4: 4, PACK_I5: 5, PACK_I6: 6, PACK_I8: 8, PACK_F8: 8}  # of a code
BITS |= dict.fromkeys(TABLES, 4)
UNIT = 32

# Where a grouped pack keeps k of each 8: byte (or nibble, low ones first) -> k.
ORDER8 = np.array([0, 4, 1, 5, 2, 6, 3, 7])

# slot -> (pack, activation form)
PRODUCTS = {
    "gemm_f32_f32": (PACK_F32, "f32"),
    "gemm_f32_f64": (PACK_F32, "f64"),
    "gemm_f16_f32": (PACK_F16, "f32"),
    "gemm_bf16_bf16": (PACK_BF16, "bf16"),
    "gemm_i8_bf16": (PACK_I8, "bf16"),
    "gemm_i8_i8": (PACK_I8, "i8"),
    "gemm_i4_bf16": (PACK_I4, "bf16"),
    "gemm_i4_i8": (PACK_I4, "i8"),
    "gemm_f8_bf16": (PACK_F8, "bf16"),
    "gemm_i5_bf16": (PACK_I5, "bf16"),
    "gemm_i5_i8": (PACK_I5, "i8"),
    "gemm_i6_bf16": (PACK_I6, "bf16"),
    "gemm_i6_i8": (PACK_I6, "i8"),
    "gemm_t4_bf16": (PACK_E2M1, "bf16"),
}
PROBES = {"probe_f32": "f32", "probe_bf16": "bf16", "probe_i8": "int8"}
GEMM_SLOTS = {*PRODUCTS, *PROBES, "probe_read", "unpack_row", "act_bf16", "act_i8", "act_i8x2"}
GEMM_SLOTS |= {"fp8_encode", "fp8_decode"}  # f8_values, e5m2_values


@dataclass(frozen=True)
class Format:
    """la_format with the K of the weight it describes."""

    pack: int
    K: int
    scale_type: int = F32
    has_offset: int = 0
    group: int = 0
    row_scale: int = 0

    @property
    def zero(self) -> int:
        """Code that stands for zero, in packs of integers."""
        always = self.pack in (PACK_I6, PACK_I8)
        return 1 << BITS[self.pack] - 1 if always or not self.has_offset else 0

    @property
    def apart(self) -> bool:
        """Whether scales lie at the head of the unit, 256 k at a time."""
        return self.scale_type in (F16_I8, E8M0)

    @property
    def step(self) -> int:
        """k of a step of codes."""
        return 16 if self.pack == PACK_I5 else 8

    def code_bytes(self, k: int) -> int:
        """Bytes of k codes of a unit, padded to whole steps."""
        return -(-k // self.step) * self.step * UNIT * BITS[self.pack] // 8

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What codes stand for before scale and offset, float64."""
        if self.pack in TABLES:  # as packs keep them: bf16
            table = bf16_value(bf16_round(TABLES[self.pack].astype(np.float32)))
            return table[codes].astype(np.float64)
        return F8_VALUES[codes] if self.pack == PACK_F8 else codes.astype(np.float64) - self.zero

    def spans(self) -> Iterator[tuple[int, int]]:
        """First k and end of each group."""
        for k in range(0, self.K, self.group):
            yield k, min(k + self.group, self.K)

    def asdict(self) -> dict[str, int]:
        """As the C functions take it."""
        return asdict(self)


# ---- number formats ----------------------------------------------------------------------------


def bf16_round(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 codes (uint16), to nearest even, NaN stays NaN."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    r = ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (u >> 16 | 0x40).astype(np.uint16), r)


def bf16_value(h: np.ndarray) -> np.ndarray:
    """bfloat16 codes -> float32."""
    return (h.astype(np.uint32) << 16).view(np.float32)


def f8_values() -> np.ndarray:
    """Value of each E4M3 code, float64: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    size[code & 127 == 127] = np.nan
    return np.where(code & 128, -size, size)


def e5m2_values() -> np.ndarray:
    """Value of each E5M2 code, float64: the upper byte of an fp16 number."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float64)


F8_VALUES = f8_values()


# ---- units -------------------------------------------------------------------------------------


def write_floats(pack: int, w: np.ndarray) -> bytes:
    """Units of a float pack; w [N, K] float32 with N a multiple of 32."""
    n, k = w.shape
    if pack == PACK_F32:
        return w.reshape(n // UNIT, UNIT, k).transpose(0, 2, 1).astype(np.float32).tobytes()
    half = w.astype(np.float16).view(np.uint16) if pack == PACK_F16 else bf16_round(w)
    padded = np.zeros((n, k + k % 2), np.uint16)
    padded[:, :k] = half
    steps = padded.reshape(n // UNIT, UNIT, -1, 2)
    return np.ascontiguousarray(steps.transpose(0, 2, 1, 3)).tobytes()


def write_nested(f: Format, sets: list[np.ndarray]) -> bytes:
    """Scales apart, and offsets if any, each [32, groups], at the head of a unit."""
    out, per = bytearray(), 256 // f.group
    if f.scale_type == E8M0:
        groups = -(-f.K // 256) * per
        powers = np.zeros((UNIT, groups), np.uint8)
        powers[:, : sets[0].shape[1]] = (sets[0].view(np.uint32) >> 23 & 255).astype(np.uint8)
        return powers.T.tobytes()
    for g in range(0, -(-f.K // f.group), per):
        parts = [
            np.pad(x[:, g : g + per], ((0, 0), (0, max(0, g + per - x.shape[1])))) for x in sets
        ]
        outer = [(np.abs(x).max(axis=1) / 64).astype(np.float16) for x in parts]
        out += b"".join(d.tobytes() for d in outer)
        for i in range(per):
            for x, d in zip(parts, outer, strict=True):
                inner = x[:, i] / np.where(d == 0, 1, d).astype(np.float32)
                out += np.clip(np.rint(inner), -128, 127).astype(np.int8).tobytes()
    return bytes(out)


def read_nested(f: Format, raw: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The inverse: scale and offset [groups][32] float32 from the bytes of one unit's head."""
    if f.scale_type == E8M0:
        powers = np.ldexp(np.float32(1), raw.reshape(-1, UNIT).astype(int) - 127)
        powers = powers[: -(-f.K // f.group)]
        return list(powers), list(np.zeros_like(powers))
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    sets, per = 1 + f.has_offset, 256 // f.group
    for block in raw.reshape(-(-f.K // 256), sets * (64 + per * UNIT)):
        outer = block[: sets * 64].view(np.float16).reshape(sets, UNIT).astype(np.float32)
        inner = block[sets * 64 :].view(np.int8).reshape(per, sets, UNIT)
        for i in range(per):
            for j in range(sets):
                found[j].append(outer[j] * inner[i, j].astype(np.float32))
            if sets == 1:
                found[1].append(np.zeros(UNIT, np.float32))
    groups = -(-f.K // f.group)
    return found[0][:groups], found[1][:groups]


def write_steps(f: Format, codes: np.ndarray) -> np.ndarray:
    """Bytes of one group's codes [32, k] of a unit, k of whole steps."""
    eights = codes.reshape(UNIT, -1, 8)[:, :, ORDER8].transpose(1, 0, 2)  # [8 k, n, 8]
    if BITS[f.pack] == 8:
        return eights.reshape(-1, UNIT, 2, 4).transpose(0, 2, 1, 3).reshape(-1)
    nibbles = eights[:, :, :4] & 15 | (eights[:, :, 4:] & 15) << 4
    if BITS[f.pack] == 4:
        return nibbles.reshape(-1)
    # [step, 8 k of it, column n or n + 16, n, low or high nibbles, byte]
    parts = (eights >> 4).reshape(-1, f.step // 8, 2, 16, 2, 4)
    parts = parts.transpose(0, 3, 5, 1, 2, 4).reshape(len(parts), 16, 4, -1)
    high = (parts << np.arange(0, 8, BITS[f.pack] - 4, dtype=np.uint8)).sum(axis=-1)
    low = nibbles.reshape(len(parts), -1)
    return np.concatenate([low, high.reshape(len(parts), -1).astype(np.uint8)], axis=1).reshape(-1)


def read_steps(f: Format, raw: np.ndarray) -> np.ndarray:
    """The inverse: codes [32, k]."""
    bits = BITS[f.pack]
    if bits == 8:
        eights = raw.reshape(-1, 2, UNIT, 4).transpose(0, 2, 1, 3).reshape(-1, UNIT, 8)
    else:
        steps = raw.reshape(-1, f.step * UNIT * bits // 8)
        low = steps[:, : f.step * 16].reshape(-1, UNIT, 4)
        eights = np.concatenate([low & 15, low >> 4], axis=2)
    if bits in (5, 6):
        high = steps[:, f.step * 16 :].reshape(-1, 16, 4, 1)
        parts = high >> np.arange(0, 8, bits - 4, dtype=np.uint8) & (1 << bits - 4) - 1
        parts = parts.reshape(-1, 16, 4, f.step // 8, 2, 2).transpose(0, 3, 4, 1, 5, 2)
        eights = eights | parts.reshape(-1, UNIT, 8) << 4
    codes = np.empty_like(eights)
    codes[:, :, ORDER8] = eights
    return codes.transpose(1, 0, 2).reshape(UNIT, -1)


def write_codes(f: Format, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> bytes:
    """Units of a grouped pack.

    codes [N, K] as stored (0..15 to 0..255), scale and offset [N, groups] float32, of which the
    first column counts with row_scale; as F16_I8 and E8M0 they are rounded, powers of two are
    kept. Codes that pad K to whole steps are set to 1: they must meet zero activations.
    """
    out = bytearray()
    head = np.float16 if f.scale_type == F16 else np.float32
    for n in range(0, codes.shape[0], UNIT):
        if f.apart:
            sets = [scale, offset][: 1 + f.has_offset]
            out += write_nested(f, [x[n : n + UNIT] for x in sets])
        for g, (k0, k1) in enumerate(f.spans()):
            if not f.apart and (g == 0 or not f.row_scale):
                out += scale[n : n + UNIT, g].astype(head).tobytes()
                if f.has_offset:
                    out += offset[n : n + UNIT, g].astype(head).tobytes()
            block = np.ones((UNIT, -(-(k1 - k0) // f.step) * f.step), np.uint8)
            block[:, : k1 - k0] = codes[n : n + UNIT, k0:k1]
            out += write_steps(f, block).tobytes()
    return bytes(out)


def read_codes(f: Format, data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of write_codes: codes [N, K], scale and offset [N, groups] float32."""
    raw = np.frombuffer(data, np.uint8)
    head = np.float16 if f.scale_type == F16 else np.float32
    line = UNIT * np.dtype(head).itemsize
    codes, scales, offsets, at = [], [], [], 0
    while at < len(raw):
        row, scale, offset = [], [], []
        if f.apart:
            nested = nested_bytes(f)
            scale, offset = read_nested(f, raw[at : at + nested])
            at += nested
        for k0, k1 in f.spans():
            if f.apart:
                pass
            elif k0 and f.row_scale:
                scale.append(scale[0])
                offset.append(offset[0])
            else:
                scale.append(raw[at : at + line].view(head).astype(np.float32))
                at += line
                offset.append(np.zeros(UNIT, np.float32))
                if f.has_offset:
                    offset[-1] = raw[at : at + line].view(head).astype(np.float32)
                    at += line
            size = f.code_bytes(k1 - k0)
            row.append(read_steps(f, raw[at : at + size])[:, : k1 - k0])
            at += size
        codes.append(np.concatenate(row, axis=1))
        scales.append(np.stack(scale, axis=1))
        offsets.append(np.stack(offset, axis=1))
    return np.concatenate(codes), np.concatenate(scales), np.concatenate(offsets)


def nested_bytes(f: Format) -> int:
    """Bytes of scales and offsets at the head of a unit, where they lie apart."""
    outer = 64 if f.scale_type == F16_I8 else 0
    return -(-f.K // 256) * (1 + f.has_offset) * (outer + 256 // f.group * UNIT)


def unit_rows(f: Format, data: bytes) -> int:
    """Columns that packed units hold, padding included."""
    if f.apart:
        return len(data) // (nested_bytes(f) + f.code_bytes(f.K)) * UNIT
    if f.group:
        one = (2 if f.scale_type == F16 else 4) * (1 + f.has_offset)
        codes = sum(f.code_bytes(k1 - k0) for k0, k1 in f.spans())
        sets = 1 if f.row_scale else len(list(f.spans()))
        return len(data) // (one * sets * UNIT + codes) * UNIT
    return len(data) // (f.K * 4 if f.pack == PACK_F32 else (f.K + 1) // 2 * 4)


def unit_values(f: Format, data: bytes) -> np.ndarray:
    """Weights [N, K] float64 that packed units stand for."""
    if f.group:
        codes, scale, offset = read_codes(f, data)
        group = np.arange(f.K) // f.group
        linear = scale.astype(np.float64)[:, group] * f.values(codes)
        return linear + offset.astype(np.float64)[:, group]
    if f.pack == PACK_F32:
        w = np.frombuffer(data, np.float32).reshape(-1, f.K, UNIT).transpose(0, 2, 1)
        return w.reshape(-1, f.K).astype(np.float64)
    half = np.frombuffer(data, np.uint16).reshape(-1, (f.K + 1) // 2, UNIT, 2)
    half = half.transpose(0, 2, 1, 3).reshape(-1, f.K + f.K % 2)[:, : f.K]
    half = np.ascontiguousarray(half)
    return (half.view(np.float16) if f.pack == PACK_F16 else bf16_value(half)).astype(np.float64)


# ---- activation rows ---------------------------------------------------------------------------


def act_lanes(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [2, M, K] in natural order and scales [2, M, groups] float32 of two lanes.

    The second lane holds what rounding to the first leaves, in steps 254 times as fine.
    """
    m, k = x.shape
    q = np.zeros((2, m, k), np.int8)
    scales = np.zeros((m, -(-k // group)), np.float32)
    for g, k0 in enumerate(range(0, k, group)):
        part = x[:, k0 : k0 + group].astype(np.float32)
        amax = np.abs(part).max(axis=1)
        tiny = amax < np.float32(1e-36)
        inv = np.where(tiny, np.float32(0), np.float32(127) / np.where(tiny, 1, amax))
        scales[:, g] = np.where(tiny, np.float32(0), amax / np.float32(127))
        scaled = np.clip(part * inv.astype(np.float32)[:, None], np.float32(-127), np.float32(127))
        near = np.rint(scaled)
        q[0, :, k0 : k0 + group] = near.astype(np.int8)
        q[1, :, k0 : k0 + group] = np.rint((scaled - near) * np.float32(254)).astype(np.int8)
    return q, np.stack([scales, scales / np.float32(254)])


def act_i8(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [M, K] in natural order and the scale [M, groups] of each group, float32."""
    q, scales = act_lanes(x, group)
    return q[0], scales[0]


def act_values(form: str, x: np.ndarray, group: int) -> np.ndarray:
    """The rows [M, K] float64 that a product sees after conversion."""
    if form in ("f32", "f64"):
        return x.astype(np.float64)
    if form == "bf16":
        return bf16_value(bf16_round(x)).astype(np.float64)
    q, scale = act_lanes(x, group)
    lanes = q * scale.astype(np.float64)[:, :, np.arange(x.shape[1]) // group]
    return lanes.sum(axis=0) if form == "i8x2" else lanes[0]


def group_sums(values: np.ndarray, group: int) -> np.ndarray:
    """Sums [M, groups] of converted rows."""
    return np.add.reduceat(values, np.arange(0, values.shape[1], group), axis=1)


# ---- products ----------------------------------------------------------------------------------


def gemm(
    f: Format, data: bytes, x: np.ndarray, form: str, fold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """y [M, N] float64 of the converted rows and the packed weight, and the size of its terms.

    fold: k of an activation group; 0: the weights' group.

    The size is sqrt(K) * rms(a) * rms(w), what errors are relative to; scale and offset parts of a
    grouped weight count apart, as they are added apart.
    """
    a = act_values(form, x, fold or f.group)
    if f.group:
        codes, scale, offset = read_codes(f, data)
        group = np.arange(f.K) // f.group
        linear = scale.astype(np.float64)[:, group] * f.values(codes)
        constant = offset.astype(np.float64)[:, group]
        w, size = linear + constant, np.abs(linear) + np.abs(constant)
    else:
        w = size = unit_values(f, data)
    rms_a = np.sqrt((a * a).mean(axis=1))[:, None]
    rms_w = np.sqrt((size * size).mean(axis=1))[None, :]
    return a @ w.T, np.sqrt(f.K) * rms_a * rms_w + 1e-30
