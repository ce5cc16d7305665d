/* gemm_drive.h - the loops around a register tile, and the fold of a group; shared by gemm*.h.
 *
 * Few rows (decode): one unit at a time, all rows in one tile, all of K: one sequential stream per
 * thread, and the head of the next unit prefetched. One and two rows take two units where a level has
 * such tiles (la_tiler.pair; vnni with int8 rows: int4, and int5 and int6 with scales of two numbers;
 * bf16 with bf16 rows: the three with scales of two numbers): two streams, 13-20 % faster; int8 loses
 * by it (0.87-0.91 of the read bandwidth for 0.88-0.98) and so does int5 with its scales in place (5 %).
 * Scales of two numbers are opened between runs of codes, and short runs win: PAIR_K of 256 over 512
 * 11-18 %, over 1024 25-32 %.
 * More rows (prefill): pairs of units, K in blocks of about 128 KiB of weights, and for each
 * block strips of rows over all M; the next block's lines are prefetched evenly over the strips.
 * Tiles work on a copy of their la_tile: stores to c could change the original as far as the
 * compiler knows, and it would load every field again for every result.
 * Scales apart (LA_F16_I8, LA_E8M0) are multiplied out to fp32 once per range of k and units, and
 * tiles read them from there, as if they were one set for all: apart from the codes.
 * A scale per row without offset (late_scale) is left out of the folds and multiplies the finished sums.
 * Invariant: a result is one chain over k. Blocks end where groups end and partial sums pass
 * through c unrounded, so neither M, strips nor blocks change a bit.
 */
#ifndef LA_GEMM_DRIVE_H
#define LA_GEMM_DRIVE_H

#include "../kernels.h"
#include "vec.h"

enum {
    TILE_V = LA_UNIT / VL,        /* vectors of a unit */
    TILE_WIDE = VL == 16,         /* strips are two units wide: 24 of 32 registers accumulate */
    TILE_FEW = VL == 16 ? 8 : 3,  /* most rows of a one-unit tile */
    TILE_ROWS = VL == 16 ? 6 : 3, /* most rows of a strip */
    TILE_QUANTUM = 256,           /* k blocks are multiples of every group */
    TILE_BLOCK_BYTES = 128 << 10,
    TILE_RAMP = 1024,          /* bytes of a unit asked for ahead of few rows */
    TILE_HEADS = 32 << 10,     /* most bytes of scales multiplied out at once */
    TILE_FEW_HEADS = 16 << 10, /* the same for few rows: beside a stream of codes */
    PAIR_K = LA_NEST,          /* k of a run of two units with few rows */
    PAIR_ROWS = 2              /* most rows of it */
};

/* One register tile: some rows by one or two units over a range of k. */
typedef struct la_tile {
    const uint8_t *w; /* first unit, where the range begins (a group's header, if it has one) */
    size_t w_pitch;
    const uint8_t *head;    /* first unit, scales of the range's first group */
    size_t head_step;       /* bytes from one group's scales to the next's; 0: one set for all */
    size_t head_pitch;      /* bytes from one unit's scales to the next's */
    const uint8_t *decoded; /* the range in the tile's own form, or NULL */
    const uint8_t *a;       /* first row, where the range begins */
    size_t a_pitch;
    const la_act_meta *meta; /* first row, first fold of the range */
    size_t meta_pitch;       /* folds of a row */
    int fold;                /* k between folds: all of a group of weights, or a part of it */
    float *c;                /* first row, first column */
    size_t ldc;
    int k;          /* length of the range */
    int first;      /* sums start at 0, else at c */
    int late_scale; /* folds leave the weights' scale out: it multiplies the finished sums */
    la_format f;
    const uint8_t *ahead; /* prefetched while the tile runs, or NULL */
    size_t ahead_pitch;   /* from unit to unit */
    size_t ahead_step;    /* bytes per step of the tile */
} la_tile;

typedef void (*la_tile_fn)(const la_tile *t);

/* The tiles of one slot. */
typedef struct la_tiler {
    const la_tile_fn *few;  /* [rows] one unit, reads the weights as they are; [few_rows + 1] */
    int few_rows;           /* 0: none */
    const la_tile_fn *pair; /* [rows] the same of two units, or NULL; [PAIR_ROWS + 1] */
    int pair_all;           /* take them whatever the scales, else for those apart alone */
    const la_tile_fn *one;  /* [rows] one unit; [rows + 1] */
    const la_tile_fn *two;  /* [rows] two units, or NULL */
    int rows;               /* most of a strip */
    int aim;                /* of a strip where there are many; 0: rows */
    int a_bytes;            /* of one activation value */
    int step_k;             /* k of a step of one and two: paces the prefetch */
    /* Writes n_units units of k values as one and two read them; NULL: they read the weights. */
    void (*decode)(const la_tile *t, int n_units, uint8_t *out);
    int decode_k; /* k of a decoded block, a multiple of TILE_QUANTUM */
    int as_i8;    /* a decoded block is units of int8 codes: one and two are int8's */
} la_tiler;

/* Scales (i = 0) or offsets (i = 1) of vector c of a unit; head: the group's scales. */
LA_INLINE vf tile_scale(la_format f, const uint8_t *head, int i, int c)
{
    if (f.scale_type == LA_F16) {
        return v_load_f16((const uint16_t *)(const void *)head + i * LA_UNIT + c * VL);
    }
    return v_loadu((const float *)(const void *)head + i * LA_UNIT + c * VL);
}

/* Before the first fold into c. */
LA_INLINE void tile_clear(const int R, const int C, const la_tile *t)
{
    if (!t->first) {
        return;
    }
    LA_UNROLL
    for (int r = 0; r < R; r++) {
        LA_UNROLL
        for (int c = 0; c < C; c++) {
            v_store(t->c + (size_t)r * t->ldc + c * VL, v_zero());
        }
    }
}

/* Sums of the whole of K by the scales of their columns. */
LA_INLINE void tile_scale_rows(const la_tile *t, int rows, int units)
{
    for (int u = 0; u < units; u++) {
        LA_UNROLL
        for (int c = 0; c < TILE_V; c++) {
            vf scale = tile_scale(t->f, t->head + (size_t)u * t->head_pitch, 0, c);
            float *out = t->c + u * LA_UNIT + c * VL;
            for (int r = 0; r < rows; r++, out += t->ldc) {
                v_store(out, v_mul(v_load(out), scale));
            }
        }
    }
}

/* What of a group's scales a fold applies. */
enum { FOLD_PLAIN, FOLD_SCALE, FOLD_OFFSET };

LA_INLINE int tile_fold_kind(const la_tile *t)
{
    return t->f.has_offset ? FOLD_OFFSET : t->late_scale ? FOLD_PLAIN : FOLD_SCALE;
}

/* c += acc * scale + offset * sum of one group. */
LA_INLINE void tile_fold_into(const int R, const int C, const int kind, const la_tile *t,
                              const uint8_t *head, const la_act_meta *meta, vf acc[8][4])
{
    LA_UNROLL
    for (int c = 0; c < C; c++) {
        const uint8_t *h = head + (size_t)(c / TILE_V) * t->head_pitch;
        vf scale = kind == FOLD_PLAIN ? v_set1(1.0f) : tile_scale(t->f, h, 0, c % TILE_V);
        vf offset = kind == FOLD_OFFSET ? tile_scale(t->f, h, 1, c % TILE_V) : v_zero();
        LA_UNROLL
        for (int r = 0; r < R; r++) {
            float *out = t->c + (size_t)r * t->ldc + c * VL;
            vf y = v_fma(acc[r][c], scale, v_load(out));
            if (kind == FOLD_OFFSET) {
                y = v_fma(offset, v_set1(meta[(size_t)r * t->meta_pitch].sum), y);
            }
            v_store(out, y);
        }
    }
}

/* The same, decided once per group: a branch per result takes longer than the arithmetic. */
LA_INLINE void tile_fold(const int R, const int C, const la_tile *t, const uint8_t *head,
                         const la_act_meta *meta, vf acc[8][4])
{
    switch (tile_fold_kind(t)) {
    case FOLD_OFFSET: tile_fold_into(R, C, FOLD_OFFSET, t, head, meta, acc); break;
    case FOLD_SCALE: tile_fold_into(R, C, FOLD_SCALE, t, head, meta, acc); break;
    default: tile_fold_into(R, C, FOLD_PLAIN, t, head, meta, acc); break;
    }
}

LA_INLINE void tile_prefetch(const la_tile *t, size_t at, const int units)
{
    if (t->ahead) {
        for (int u = 0; u < units; u++) {
            __builtin_prefetch(t->ahead + (size_t)u * t->ahead_pitch + at, 0, 3);
        }
    }
}

/* Whether a group begins at k0, that is whether its scales and its header come next. */
LA_INLINE int tile_begins(const la_tile *t, int k0) { return (k0 & (t->f.group - 1)) == 0; }

/* Bytes of k values of a unit, whole groups with their headers. */
LA_INLINE size_t tile_offset(la_format f, int k)
{
    if (f.group == 0) {
        return la_format_codes(f, k);
    }
    return (size_t)(k / f.group) * (la_format_header(f) + la_format_codes(f, f.group));
}

/* Units u .. u + n, k from k0: the part that does not depend on the rows. */
LA_INLINE la_tile tile_start(const la_gemm *g, const la_tiler *s, int u, int k0)
{
    la_tile t;
    memset(&t, 0, sizeof t);
    const uint8_t *unit = g->w + (size_t)u * g->w_pitch;
    t.w = unit + la_format_unit_header(g->f, g->K) + tile_offset(g->f, k0);
    t.w_pitch = g->w_pitch;
    t.head = g->f.row_scale ? unit : t.w;
    t.head_step = g->f.row_scale ? 0 : tile_offset(g->f, g->f.group);
    t.head_pitch = g->w_pitch;
    t.a = g->a + (size_t)k0 * (size_t)s->a_bytes;
    t.a_pitch = g->a_pitch;
    t.fold = g->fold ? g->fold : g->f.group;
    t.meta_pitch = t.fold ? (size_t)((g->K + t.fold - 1) / t.fold) : 0;
    t.meta = t.fold ? g->meta + k0 / t.fold : NULL;
    t.c = g->c + u * LA_UNIT;
    t.ldc = (size_t)g->ldc;
    t.first = k0 == 0;
    t.late_scale = g->f.row_scale && !g->f.has_offset;
    t.f = g->f;
    return t;
}

/* Powers of two of LA_NEST k as fp32: [group][32]; returns where they end. */
LA_INLINE float *tile_powers(la_format f, const uint8_t *exponent, float *out)
{
    for (int i = 0; i < LA_NEST / f.group * LA_UNIT; i += VL) {
        v_store(out + i, v_load_e8m0(exponent + i));
    }
    return out + LA_NEST / f.group * LA_UNIT;
}

/* Scales apart, and offsets, of the range, multiplied out: [units][group][32], offsets behind scales.
 * From here on the tile has fp32 scales apart from its codes. */
LA_INLINE void tile_open(const la_gemm *g, la_tile *t, int u, int units, int k0, float *heads)
{
    const int sets = 1 + g->f.has_offset;
    float *out = heads;
    for (int i = u; i < u + units; i++) {
        const uint8_t *unit = g->w + (size_t)i * g->w_pitch;
        for (int k = k0; k < k0 + t->k; k += LA_NEST) {
            const int8_t *inner = (const int8_t *)unit + la_format_inner(g->f, 0, k);
            if (g->f.scale_type == LA_E8M0) {
                out = tile_powers(g->f, (const uint8_t *)inner, out);
                continue;
            }
            vf outer[2][TILE_V];
            for (int j = 0; j < TILE_V * sets; j++) {
                const uint8_t *at = unit + la_format_outer(g->f, j / TILE_V, k);
                outer[j / TILE_V][j % TILE_V] =
                    v_load_f16((const uint16_t *)(const void *)at + j % TILE_V * VL);
            }
            for (int j = 0; j < LA_NEST / g->f.group; j++) {
                for (int set = 0; set < sets; set++, inner += LA_UNIT, out += LA_UNIT) {
                    LA_UNROLL
                    for (int c = 0; c < TILE_V; c++) {
                        v_store(out + c * VL, v_mul(v_load_i8(inner + c * VL), outer[set][c]));
                    }
                }
            }
        }
    }
    t->f.scale_type = LA_F32;
    t->f.row_scale = 1;
    t->head = (const uint8_t *)heads;
    t->head_step = (size_t)sets * LA_UNIT * sizeof(float);
    t->head_pitch =
        (size_t)((t->k + LA_NEST - 1) / LA_NEST * (LA_NEST / g->f.group)) * t->head_step;
}

/* k whose scales, multiplied out, take at most `bytes`. */
LA_INLINE int tile_open_k(la_format f, int units, int bytes)
{
    return bytes / (units * (1 + f.has_offset) * LA_UNIT * 4) * f.group;
}

/* Slots of 4-bit codes with a table are instances for E2M1; which table it is the format says. */
#define TILE_TABLE(pack) ((pack) == LA_PACK_E2M1)

/* Bits of a code of the pack. */
LA_INLINE int tile_bits(const int pack)
{
    return pack == LA_PACK_I4 || TILE_TABLE(pack) ? 4
           : pack == LA_PACK_I5                   ? 5
           : pack == LA_PACK_I6                   ? 6
                                                  : 8;
}

/* k and bytes of a step of 4, 5, 6 or 8 bits. */
LA_INLINE int tile_step_k(const int bits) { return bits == 5 ? 16 : 8; }

LA_INLINE size_t tile_step_bytes(const int bits)
{
    return bits == 4 ? 128 : bits == 5 ? 320 : bits == 6 ? 192 : 256;
}

/* All rows of one block in strips. next: the block read after this one, of `bytes` per unit. */
LA_INLINE void tile_strips(const la_gemm *g, const la_tiler *s, la_tile t, int units,
                           const uint8_t *next, size_t next_pitch, size_t bytes, int last)
{
    const uint8_t *a = t.a;
    const la_act_meta *meta = t.meta;
    float *c = t.c;
    int strips = (g->M + s->rows - 1) / s->rows, wanted = s->aim ? g->M / s->aim : 0;
    int steps = (t.k + s->step_k - 1) / s->step_k;
    strips = strips > wanted ? strips : wanted;
    size_t share = bytes / (size_t)strips;
    t.ahead_pitch = next_pitch;
    t.ahead_step = share / (size_t)steps;
    for (int i = 0; i < strips; i++) {
        int row = (int)((int64_t)g->M * i / strips);
        int rows = (int)((int64_t)g->M * (i + 1) / strips) - row;
        t.a = a + (size_t)row * t.a_pitch;
        t.meta = meta ? meta + (size_t)row * t.meta_pitch : NULL;
        t.c = c + (size_t)row * t.ldc;
        t.ahead = next ? next + (size_t)i * share : NULL;
        (units == 2 ? s->two[rows] : s->one[rows])(&t);
        if (last && t.late_scale) {
            tile_scale_rows(&t, rows, units);
        }
    }
}

/* Length of the K blocks: as even as multiples of TILE_QUANTUM allow. A quarter of a block more is
 * better than one block more, whose sums would be loaded and stored once more. */
LA_INLINE int tile_block(const la_gemm *g, const la_tiler *s, int units)
{
    if (s->decode) {
        return s->decode_k;
    }
    size_t bytes = la_format_unit(g->f, g->K) * (size_t)units;
    int blocks = (int)((bytes + TILE_BLOCK_BYTES * 3 / 4 - 1) / TILE_BLOCK_BYTES);
    blocks = blocks > 1 ? blocks : 1;
    int k = (g->K + blocks - 1) / blocks;
    k = (k + TILE_QUANTUM - 1) / TILE_QUANTUM * TILE_QUANTUM;
    int most = la_scales_apart(g->f) ? tile_open_k(g->f, units, TILE_HEADS) : k;
    return k < most ? k : most;
}

/* decoded and heads: as below; heads NULL if scales are not apart. */
LA_INLINE void tile_many(const la_gemm *g, const la_tiler *s, uint8_t *decoded, float *heads)
{
    for (int u = 0, units; u < g->n_units; u += units) {
        units = s->two && g->n_units - u >= 2 ? 2 : 1;
        int block = tile_block(g, s, units);
        for (int k0 = 0; k0 < g->K; k0 += block) {
            la_tile t = tile_start(g, s, u, k0);
            t.k = g->K - k0 < block ? g->K - k0 : block;
            size_t bytes = tile_offset(g->f, block), pitch = g->w_pitch;
            const uint8_t *next = t.w + bytes;
            if (k0 + block >= g->K) { /* the next units, then what follows this call */
                next = g->w + (size_t)(u + units) * g->w_pitch;
                bytes = g->w_pitch < bytes ? g->w_pitch : bytes;
            }
            if (k0 + block >= g->K && u + units >= g->n_units) {
                next = g->next;
                if (g->next_bytes < (size_t)units * pitch) { /* less than as many units: one run */
                    size_t run = g->next_bytes / (size_t)units / 64 * 64;
                    bytes = run < bytes ? run : bytes;
                    pitch = bytes;
                }
            }
            if (heads) {
                tile_open(g, &t, u, units, k0, heads);
            }
            if (s->decode) {
                s->decode(&t, units, decoded);
                t.decoded = decoded;
                if (s->as_i8) { /* codes apart from their scales, which stay where they are */
                    t.w = decoded;
                    t.w_pitch = (size_t)block * LA_UNIT;
                    t.f.pack = LA_PACK_I8;
                    t.f.row_scale = 1;
                }
            }
            tile_strips(g, s, t, units, g->M > s->rows ? next : NULL, pitch, bytes,
                        k0 + block >= g->K);
        }
    }
}

/* tile_drive for scales apart: not inlined, so that others do without the room. */
static __attribute__((noinline, unused)) void tile_nested(const la_gemm *g, const la_tiler *s,
                                                          uint8_t *decoded)
{
    _Alignas(64) float heads[TILE_HEADS / sizeof(float)];
    if (g->M > s->few_rows) {
        tile_many(g, s, decoded, heads);
        return;
    }
    for (int u = 0, units; u < g->n_units; u += units) {
        units = s->pair && g->M <= PAIR_ROWS && g->n_units - u >= 2 ? 2 : 1;
        int block = units == 2 ? PAIR_K : tile_open_k(g->f, 1, TILE_FEW_HEADS);
        for (int k0 = 0; k0 < g->K; k0 += block) {
            la_tile t = tile_start(g, s, u, k0);
            t.k = g->K - k0 < block ? g->K - k0 : block;
            tile_open(g, &t, u, units, k0, heads);
            (units == 2 ? s->pair : s->few)[g->M](&t);
        }
    }
}

/* Few rows: the head of unit u, or of what follows this call, is asked for in time: the processor's own
 * prefetch finds out late that a stream begins (int8, one row, units of 25 and 66 KB at 49 GB/s: 0.68 of
 * the read bandwidth without, 0.77 and 0.84 with). */
LA_INLINE void tile_ramp(const la_gemm *g, const la_tiler *s, la_tile *t, int u)
{
    t->ahead = u < g->n_units ? g->w + (size_t)u * g->w_pitch : g->next;
    t->ahead_pitch = g->w_pitch;
    t->ahead_step = (size_t)(TILE_RAMP * s->step_k / g->K);
}

/* decoded: room for one block if s->decode, 64-byte aligned. */
LA_INLINE void tile_drive(const la_gemm *g, const la_tiler *s, uint8_t *decoded)
{
    if (la_scales_apart(g->f)) {
        tile_nested(g, s, decoded);
        return;
    }
    if (g->M > s->few_rows) {
        tile_many(g, s, decoded, NULL);
        return;
    }
    int pairs = s->pair_all && g->M <= PAIR_ROWS;
    for (int u = 0, units; u < g->n_units; u += units) {
        units = pairs && g->n_units - u >= 2 ? 2 : 1;
        la_tile t = tile_start(g, s, u, 0);
        t.k = g->K;
        t.meta = g->meta;
        tile_ramp(g, s, &t, u + units);
        (units == 2 ? s->pair : s->few)[g->M](&t);
        if (t.late_scale) {
            tile_scale_rows(&t, g->M, units);
        }
    }
}

#endif
