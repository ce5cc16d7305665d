/* cublaslt.cu - see cublaslt.h. Owns our own prototypes of the functions and numbers that are used, as cuBLASLt 13 has
 * them; no header of it is needed to build. To the library matrices lie by columns, so rows of out are columns of its
 * D [N, M], w is its A [K, N], transposed, and a its B [K, M]. Descriptions are made for each call, since graphs
 * would outlive what is kept. Called by backend_fast.cu, tests and benchmarks. */
#include "cublaslt.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

enum { R_32F = 0, R_16F = 2, R_16BF = 14, R_8F_E4M3 = 28 };   /* cudaDataType */
enum { COMPUTE_32F = 68, OP_N = 0, OP_T = 1 };                /* of cublas */
enum { DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7 }; /* cublasLtMatmulDescAttributes_t */
enum { DESC_BIAS_POINTER = 8, DESC_A_SCALE = 17, DESC_B_SCALE = 18 };
enum { DESC_A_SCALE_MODE = 31, DESC_B_SCALE_MODE = 32 };
enum { SCALE_VEC128 = 4, SCALE_BLK128X128 = 5, EPILOGUE_BIAS = 4 };
enum { PREF_WORKSPACE = 1, PREF_ALIGNMENT_A = 5 }; /* then B, C, D */
enum { NOT_SUPPORTED = 15 };
enum { ANSWERS = 1024, MOST_ALIGNMENT = 256 };

typedef struct algorithm {
    uint64_t words[8];
} algorithm;

typedef struct heuristic {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} heuristic;

typedef int status;
typedef struct functions {
    size_t (*version)(void);
    status (*create)(void **handle);
    status (*destroy)(void *handle);
    status (*desc_create)(void **desc, int compute, int scale);
    status (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    status (*desc_destroy)(void *desc);
    status (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    status (*layout_destroy)(void *layout);
    status (*pref_create)(void **pref);
    status (*pref_set)(void *pref, int attribute, const void *value, size_t bytes);
    status (*pref_destroy)(void *pref);
    status (*heuristics)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref,
                         int most, heuristic *found, int *n);
    status (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                     const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                     void *d, void *d_layout, const algorithm *algo, void *workspace,
                     size_t workspace_bytes, void *stream);
} functions;

/* All that an answer depends on. */
typedef struct question {
    int64_t ldo;
    uint64_t room;
    int M, N, K, type, biased, adds;
    uint32_t align_a, align_w, align_out; /* bytes */
    int unused;
} question;

typedef struct answer {
    question of;
    algorithm algo;
    int known, can;
} answer;

/* What a product is to the library. */
typedef struct description {
    void *desc, *a, *b, *d;
} description;

typedef struct call {
    la_cublas *c;
    la_cublas_product p;
    algorithm algo;
} call;

} // namespace

struct la_cublas {
    functions f;
    void *handle;
    char name[600];
    answer answers[ANSWERS];
};

namespace {

template <class function> int find(void *object, const char *name, function *out)
{
    void *symbol = dlsym(object, name);
    memcpy(out, &symbol, sizeof symbol);
    return symbol != NULL;
}

/* The name of the first function that is not there; NULL: all are. */
const char *find_all(void *object, functions *f)
{
    const char *names[] = {"cublasLtGetVersion",
                           "cublasLtCreate",
                           "cublasLtDestroy",
                           "cublasLtMatmulDescCreate",
                           "cublasLtMatmulDescSetAttribute",
                           "cublasLtMatmulDescDestroy",
                           "cublasLtMatrixLayoutCreate",
                           "cublasLtMatrixLayoutDestroy",
                           "cublasLtMatmulPreferenceCreate",
                           "cublasLtMatmulPreferenceSetAttribute",
                           "cublasLtMatmulPreferenceDestroy",
                           "cublasLtMatmulAlgoGetHeuristic",
                           "cublasLtMatmul"};
    int there[] = {
        find(object, names[0], &f->version),       find(object, names[1], &f->create),
        find(object, names[2], &f->destroy),       find(object, names[3], &f->desc_create),
        find(object, names[4], &f->desc_set),      find(object, names[5], &f->desc_destroy),
        find(object, names[6], &f->layout_create), find(object, names[7], &f->layout_destroy),
        find(object, names[8], &f->pref_create),   find(object, names[9], &f->pref_set),
        find(object, names[10], &f->pref_destroy), find(object, names[11], &f->heuristics),
        find(object, names[12], &f->matmul)};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++) {
        if (!there[i]) {
            return names[i];
        }
    }
    return NULL;
}

uint32_t alignment(const void *p)
{
    uintptr_t bits = reinterpret_cast<uintptr_t>(p) | MOST_ALIGNMENT;
    return (uint32_t)(bits & (~bits + 1));
}

void undo(const functions *f, description *d)
{
    if (d->desc != NULL) {
        (void)f->desc_destroy(d->desc);
    }
    void *const layouts[] = {d->a, d->b, d->d};
    for (void *layout : layouts) {
        if (layout != NULL) {
            (void)f->layout_destroy(layout);
        }
    }
    *d = {};
}

status set_int(const functions *f, void *desc, int attribute, int value)
{
    int32_t number = value;
    return f->desc_set(desc, attribute, &number, sizeof number);
}

/* Transposes, bias and scales. */
status set_attributes(const functions *f, void *desc, const la_cublas_product *p)
{
    status st = set_int(f, desc, DESC_TRANSA, OP_T);
    st = st != 0 ? st : set_int(f, desc, DESC_TRANSB, OP_N);
    if (p->bias != NULL) {
        st = st != 0 ? st : set_int(f, desc, DESC_EPILOGUE, EPILOGUE_BIAS);
        st = st != 0 ? st : f->desc_set(desc, DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    }
    if (p->type == LA_CUBLAS_E4M3) {
        st = st != 0 ? st : set_int(f, desc, DESC_A_SCALE_MODE, SCALE_BLK128X128);
        st = st != 0 ? st : set_int(f, desc, DESC_B_SCALE_MODE, SCALE_VEC128);
        st = st != 0 ? st : f->desc_set(desc, DESC_A_SCALE, &p->w_scale, sizeof p->w_scale);
        st = st != 0 ? st : f->desc_set(desc, DESC_B_SCALE, &p->a_scale, sizeof p->a_scale);
    }
    return st;
}

status describe(const functions *f, const la_cublas_product *p, description *d)
{
    static const int types[] = {R_16BF, R_16F, R_8F_E4M3};
    const uint64_t M = (uint64_t)p->M, N = (uint64_t)p->N, K = (uint64_t)p->K;
    *d = {};
    status st = f->desc_create(&d->desc, COMPUTE_32F, R_32F);
    st = st != 0 ? st : set_attributes(f, d->desc, p);
    st = st != 0 ? st : f->layout_create(&d->a, types[p->type], K, N, p->K);
    st = st != 0 ? st : f->layout_create(&d->b, types[p->type], K, M, p->K);
    st = st != 0 ? st : f->layout_create(&d->d, R_32F, N, M, p->ldo);
    if (st != 0) {
        undo(f, d);
    }
    return st;
}

question question_of(const la_cublas_product *p)
{
    question q;
    memset(&q, 0, sizeof q); /* compared byte by byte */
    q.ldo = p->ldo;
    q.room = p->room_bytes;
    q.M = p->M;
    q.N = p->N;
    q.K = p->K;
    q.type = p->type;
    q.biased = p->bias != NULL;
    q.adds = p->beta != 0.0f;
    q.align_a = alignment(p->a);
    q.align_a = p->a_align != 0 && p->a_align < q.align_a ? p->a_align : q.align_a;
    q.align_w = alignment(p->w);
    q.align_out = alignment(p->out);
    return q;
}

/* Where the answer is kept, if it is: another question may have it. */
answer *place_of(la_cublas *c, const question *q)
{
    const uint8_t *bytes = reinterpret_cast<const uint8_t *>(q);
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < sizeof *q; i++) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return &c->answers[(hash ^ hash >> 15) % ANSWERS];
}

/* The best algorithm for a product. 0: found. */
status choose(const la_cublas *c, const la_cublas_product *p, const question *q, algorithm *out)
{
    const functions *f = &c->f;
    const uint32_t aligned[] = {q->align_w, q->align_a, q->align_out, q->align_out};
    description d;
    void *pref = NULL;
    heuristic found = {};
    int n = 0;
    status st = describe(f, p, &d);
    st = st != 0 ? st : f->pref_create(&pref);
    st = st != 0 ? st : f->pref_set(pref, PREF_WORKSPACE, &p->room_bytes, sizeof p->room_bytes);
    for (int i = 0; i < 4; i++) {
        st = st != 0 ? st : f->pref_set(pref, PREF_ALIGNMENT_A + i, &aligned[i], sizeof aligned[i]);
    }
    st = st != 0 ? st : f->heuristics(c->handle, d.desc, d.a, d.b, d.d, d.d, pref, 1, &found, &n);
    st = st == 0 && (n < 1 || found.state != 0) ? NOT_SUPPORTED : st;
    *out = found.algo;
    if (pref != NULL) {
        (void)f->pref_destroy(pref);
    }
    undo(f, &d);
    return st;
}

const answer *answer_to(la_cublas *c, const la_cublas_product *p)
{
    const question q = question_of(p);
    answer *a = place_of(c, &q);
    if (!a->known || memcmp(&a->of, &q, sizeof q) != 0) {
        a->of = q;
        a->can = choose(c, p, &q, &a->algo) == 0;
        a->known = 1;
    }
    return a;
}

/* la_rt_call */
int multiply(void *stream, const void *args, char *why, size_t n)
{
    const call *of = static_cast<const call *>(args);
    const functions *f = &of->c->f;
    const la_cublas_product *p = &of->p;
    description d;
    status st = describe(f, p, &d);
    if (st == 0) {
        st = f->matmul(of->c->handle, d.desc, &p->alpha, p->w, d.a, p->a, d.b, &p->beta, p->out,
                       d.d, p->out, d.d, &of->algo, p->room, p->room_bytes, stream);
        undo(f, &d);
    }
    if (st != 0) {
        snprintf(why, n, "cublasLtMatmul of %d x %d x %d: status %d", p->M, p->N, p->K, st);
    }
    return st == 0 ? 0 : -1;
}

} // namespace

extern "C" {

la_cublas *la_cublas_open(const char *file, int loaded, char *why, size_t n)
{
    void *object = dlopen(file, RTLD_NOW | RTLD_LOCAL | (loaded ? RTLD_NOLOAD : RTLD_NODELETE));
    if (object == NULL) {
        const char *said = dlerror();
        snprintf(why, n, "%s: %s", file, said != NULL && !loaded ? said : "not loaded");
        return NULL;
    }
    functions f;
    const char *missing = find_all(object, &f);
    size_t version = missing == NULL ? f.version() : 0;
    Dl_info place = {};
    (void)dladdr(reinterpret_cast<void *>(f.version), &place);
    if (missing != NULL || version / 10000 != 13) {
        missing != NULL ? snprintf(why, n, "%s: no %s", file, missing)
                        : snprintf(why, n, "%s: version %zu, not 13", file, version / 10000);
        return NULL;
    }
    la_cublas *c = static_cast<la_cublas *>(calloc(1, sizeof *c));
    status st = c != NULL ? f.create(&c->handle) : 0;
    if (c == NULL || st != 0) {
        snprintf(why, n, "%s: cublasLtCreate: status %d", file, c != NULL ? st : -1);
        free(c);
        return NULL;
    }
    c->f = f;
    snprintf(c->name, sizeof c->name, "cuBLASLt %zu.%zu.%zu (%s)", version / 10000,
             version / 100 % 100, version % 100, place.dli_fname != NULL ? place.dli_fname : file);
    return c;
}

void la_cublas_close(la_cublas *c)
{
    if (c != NULL) {
        (void)c->f.destroy(c->handle);
        free(c);
    }
}

const char *la_cublas_name(const la_cublas *c)
{
    return c->name;
}

int la_cublas_can(la_cublas *c, const la_cublas_product *p)
{
    return answer_to(c, p)->can;
}

void la_cublas_ask(la_cublas *c, la_rt_stream *s, const la_cublas_product *p)
{
    const call of = {c, *p, answer_to(c, p)->algo};
    la_rt_ask(s, multiply, &of, sizeof of);
}

} // extern "C"
