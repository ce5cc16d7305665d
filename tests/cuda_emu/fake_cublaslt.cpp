/* fake_cublaslt.cpp - the functions of cuBLASLt that cublaslt.cu calls, computed on the host in double.
 *
 * Owns the rules that are checked: sizes and values of attributes, A transposed and B not, leading dimensions, the
 * same C and D, an algorithm used for the shape, alignments and workspace that it was chosen for. What breaks one is
 * status 7 (invalid value), and fake_said tells. Writes all of the workspace that it said it wants. fake_* set what
 * fails and count. Built as libcublasLt.so.13 by test_cuda_cublas.py.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <string>

namespace {

enum { SUCCESS = 0, INVALID = 7, UNSUPPORTED = 15 };
constexpr size_t WORKSPACE = 4096;

struct desc {
    std::map<int, std::string> set;

    int number(int attribute, int otherwise) const
    {
        auto found = set.find(attribute);
        int value = otherwise;
        if (found != set.end()) {
            memcpy(&value, found->second.data(), sizeof value);
        }
        return value;
    }
    const float *pointer(int attribute) const
    {
        auto found = set.find(attribute);
        const float *value = nullptr;
        if (found != set.end()) {
            memcpy(&value, found->second.data(), sizeof value);
        }
        return value;
    }
};

struct layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
};

struct algorithm {
    uint64_t words[8];
};

struct heuristic {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

struct counts {
    size_t version;
    int refuse_from, fail, alive, handles, asked, made, biased;
    std::string said;
};

counts w = {130102, 0, 0, 0, 0, 0, 0, 0, ""};

int wrong(const char *what)
{
    w.said = w.said.empty() ? what : w.said;
    return INVALID;
}

int bytes_of(int type)
{
    return type == 0 ? 4 : type == 2 || type == 14 ? 2 : type == 28 ? 1 : 0;
}

float half(uint16_t bits)
{
    int e = bits >> 10 & 31, m = bits & 1023;
    float v = e == 0 ? ldexpf((float)m, -24) : ldexpf((float)(1024 + m), e - 25);
    v = e == 31 ? (m != 0 ? NAN : INFINITY) : v;
    return bits & 0x8000 ? -v : v;
}

float eight(uint8_t bits)
{
    int e = bits >> 3 & 15, m = bits & 7;
    float v = e == 0 ? ldexpf((float)m, -9) : ldexpf((float)(8 + m), e - 10);
    v = e == 15 && m == 7 ? NAN : v;
    return bits & 0x80 ? -v : v;
}

double value(const layout *l, const void *p, uint64_t row, uint64_t col)
{
    const uint64_t i = col * (uint64_t)l->ld + row;
    if (l->type == 28) {
        return eight(static_cast<const uint8_t *>(p)[i]);
    }
    uint16_t bits = static_cast<const uint16_t *>(p)[i];
    if (l->type == 2) {
        return half(bits);
    }
    uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, sizeof v);
    return v;
}

int fits(const desc *d, const layout *a, const layout *b, const layout *c)
{
    int fp8 = a->type == 28;
    if (d->number(3, 0) != 1 || d->number(4, 0) != 0) {
        return wrong("transposes other than A's");
    }
    if (a->rows != b->rows || a->cols != c->rows || b->cols != c->cols || a->type != b->type) {
        return wrong("shapes that do not meet");
    }
    if (c->type != 0 || (a->type != 2 && a->type != 14 && a->type != 28)) {
        return wrong("types");
    }
    if (fp8 && (d->number(31, 0) != 5 || d->number(32, 0) != 4 || d->pointer(17) == nullptr ||
                d->pointer(18) == nullptr || a->rows % 16 != 0)) {
        return wrong("scales of FP8");
    }
    if (d->number(7, 1) == 4 && d->pointer(8) == nullptr) {
        return wrong("a bias that is nowhere");
    }
    return SUCCESS;
}

/* What an algorithm was chosen for. */
algorithm chosen(const desc *d, const layout *a, const layout *c)
{
    algorithm g = {{a->rows, c->rows, c->cols, (uint64_t)c->ld, (uint64_t)a->type,
                    (uint64_t)d->number(7, 1), 0, 0x5eed}};
    return g;
}

double scaled_sum(const desc *d, const layout *a, const void *A, const layout *b, const void *B,
                  uint64_t n, uint64_t m)
{
    const float *a_scale = d->pointer(17), *b_scale = d->pointer(18);
    const uint64_t blocks = (a->rows + 127) / 128, pitch = (blocks + 3) / 4 * 4;
    double sum = 0.0;
    for (uint64_t k = 0; k < a->rows; k++) {
        double part = value(a, A, k, n) * value(b, B, k, m);
        if (a->type == 28) {
            part *= (double)a_scale[n / 128 * pitch + k / 128] * b_scale[k / 128 * b->cols + m];
        }
        sum += part;
    }
    return sum;
}

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

/* refuse_from: products of as many rows or more have no algorithm, 0: all have. fail: the status of products. */
EXPORT void fake_set(size_t version, int refuse_from, int fail)
{
    w = {version, refuse_from, fail, w.alive, w.handles, 0, 0, 0, ""};
}

EXPORT const char *fake_said(void)
{
    return w.said.c_str();
}

/* out: descriptions alive, heuristics asked, products made, those with a bias, handles alive. */
EXPORT void fake_count(int *out)
{
    out[0] = w.alive;
    out[1] = w.asked;
    out[2] = w.made;
    out[3] = w.biased;
    out[4] = w.handles;
}

EXPORT size_t cublasLtGetVersion(void)
{
    return w.version;
}

EXPORT int cublasLtCreate(void **handle)
{
    *handle = &w;
    w.handles++;
    return SUCCESS;
}

EXPORT int cublasLtDestroy(void *handle)
{
    w.handles--;
    return handle == &w ? SUCCESS : wrong("a handle");
}

EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int scale)
{
    *out = new desc;
    w.alive++;
    return compute == 68 && scale == 0 ? SUCCESS : wrong("a compute type");
}

EXPORT int cublasLtMatmulDescSetAttribute(void *d, int attribute, const void *buffer, size_t bytes)
{
    size_t want = attribute == 8 || attribute == 17 || attribute == 18 ? 8 : 4;
    static_cast<desc *>(d)->set[attribute] = std::string(static_cast<const char *>(buffer), bytes);
    return bytes == want ? SUCCESS : wrong("the size of an attribute");
}

EXPORT int cublasLtMatmulDescDestroy(void *d)
{
    delete static_cast<desc *>(d);
    w.alive--;
    return SUCCESS;
}

EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t cols,
                                      int64_t ld)
{
    *out = new layout{type, rows, cols, ld};
    w.alive++;
    return ld >= (int64_t)rows && bytes_of(type) != 0 ? SUCCESS : wrong("a leading dimension");
}

EXPORT int cublasLtMatrixLayoutDestroy(void *l)
{
    delete static_cast<layout *>(l);
    w.alive--;
    return SUCCESS;
}

EXPORT int cublasLtMatmulPreferenceCreate(void **out)
{
    return cublasLtMatmulDescCreate(out, 68, 0);
}

EXPORT int cublasLtMatmulPreferenceSetAttribute(void *p, int attribute, const void *buffer,
                                                size_t bytes)
{
    static_cast<desc *>(p)->set[attribute] = std::string(static_cast<const char *>(buffer), bytes);
    return bytes == (attribute == 1 ? 8u : 4u) ? SUCCESS : wrong("the size of a preference");
}

EXPORT int cublasLtMatmulPreferenceDestroy(void *p)
{
    return cublasLtMatmulDescDestroy(p);
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *d, void *a, void *b, void *c, void *out,
                                          void *pref, int most, void *results, int *n)
{
    const desc *of = static_cast<desc *>(d), *wish = static_cast<desc *>(pref);
    const layout *la = static_cast<layout *>(a), *lb = static_cast<layout *>(b);
    const layout *lc = static_cast<layout *>(c);
    heuristic *found = static_cast<heuristic *>(results);
    w.asked++;
    *n = 0;
    int st = c == out && most == 1 ? fits(of, la, lb, lc) : wrong("C and D");
    uint64_t room = 0, aligned = 0;
    if (wish->set.count(1) == 0 || wish->set.size() != 5) {
        return wrong("preferences");
    }
    memcpy(&room, wish->set.at(1).data(), sizeof room);
    for (int i = 0; i < 4; i++) {
        aligned |= (uint64_t)wish->number(5 + i, 256) << 16 * i;
    }
    if (st != SUCCESS || (w.refuse_from > 0 && lc->cols >= (uint64_t)w.refuse_from)) {
        return st != SUCCESS ? st : UNSUPPORTED;
    }
    *found = {chosen(of, la, lc), room < WORKSPACE ? room : WORKSPACE, SUCCESS, 1.0f, {0}};
    found->algo.words[6] = aligned;
    *n = 1;
    return SUCCESS;
}

EXPORT int cublasLtMatmul(void *, void *d, const void *alpha, const void *A, void *a, const void *B,
                          void *b, const void *beta, const void *C, void *c, void *D, void *out,
                          const void *algo, void *room, size_t room_bytes, void *)
{
    const desc *of = static_cast<desc *>(d);
    const layout *la = static_cast<layout *>(a), *lb = static_cast<layout *>(b);
    const layout *lc = static_cast<layout *>(c);
    algorithm g = *static_cast<const algorithm *>(algo), want = chosen(of, la, lc);
    const void *const at[] = {A, B, C, D};
    if (w.fail != 0) {
        return w.fail;
    }
    if (fits(of, la, lb, lc) != SUCCESS || C != D || c != out) {
        return wrong("C and D of a product");
    }
    for (int i = 0; i < 4; i++) {
        if (reinterpret_cast<uintptr_t>(at[i]) % (g.words[6] >> 16 * i & 0xffff) != 0) {
            return wrong("an alignment that was promised");
        }
    }
    want.words[6] = g.words[6];
    if (memcmp(&g, &want, sizeof g) != 0 || room_bytes < WORKSPACE || room == nullptr) {
        return wrong("an algorithm chosen for another product, or no room");
    }
    memset(room, 0xff, WORKSPACE);
    float scale, keep;
    memcpy(&scale, alpha, sizeof scale);
    memcpy(&keep, beta, sizeof keep);
    const float *bias = of->number(7, 1) == 4 ? of->pointer(8) : nullptr;
    for (uint64_t m = 0; m < lc->cols; m++) {
        for (uint64_t n = 0; n < lc->rows; n++) {
            float *to = static_cast<float *>(D) + m * (uint64_t)lc->ld + n;
            double y = scale * scaled_sum(of, la, A, lb, B, n, m);
            y += keep != 0.0f ? (double)keep * *to : 0.0;
            *to = (float)(y + (bias != nullptr ? bias[n] : 0.0f));
        }
    }
    w.made++;
    w.biased += bias != nullptr;
    return SUCCESS;
}
