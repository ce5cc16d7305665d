/* py_testing.c - the page tables, the scheduler and the cgroup reader, for tests alone.
 *
 * Owns PagePool and StepScheduler: each wraps one C structure and the tables or groups handed to it,
 * which tests name by number. Invariant: every argument that could break the C side is checked here,
 * because the structures themselves trust their caller (the engine). There is no model: the test
 * decides what was computed and what was drawn. Registered by py_module.c.
 */
#include "py_module.h"

#include "../base/cpu.h"
#include "../engine/scheduler.h"

/* ---- numbered things -------------------------------------------------------------------------- */

typedef struct shelf {
    void **items;
    Py_ssize_t n, cap;
} shelf;

/* Keeps the item and returns its number; -1 with an exception set. */
static Py_ssize_t shelf_put(shelf *s, void *item)
{
    if (s->n == s->cap) {
        Py_ssize_t cap = s->cap > 0 ? 2 * s->cap : 16;
        void **items = PyMem_Realloc(s->items, (size_t)cap * sizeof *items);
        if (items == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        s->items = items;
        s->cap = cap;
    }
    s->items[s->n] = item;
    return s->n++;
}

static void *shelf_get(const shelf *s, Py_ssize_t i)
{
    if (i < 0 || i >= s->n) {
        PyErr_Format(PyExc_IndexError, "no item %zd among %zd", i, s->n);
        return NULL;
    }
    return s->items[i];
}

static PyObject *raise_last(la_status st)
{
    PyErr_SetString(st == LA_ERR_MEMORY ? PyExc_MemoryError : PyExc_ValueError, la_last_error());
    return NULL;
}

static PyObject *list_pages(const la_table *t)
{
    PyObject *list = PyList_New(t->n);
    for (int i = 0; list != NULL && i < t->n; i++) {
        PyObject *page = PyLong_FromLong(t->pages[i]);
        if (page == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SetItem(list, i, page);
    }
    return list;
}

/* [(src, dst)] of the copies to be made; they count as made afterwards. */
static PyObject *take_copies(la_kvcache *c)
{
    PyObject *list = PyList_New(c->n_copies);
    for (int i = 0; list != NULL && i < c->n_copies; i++) {
        PyObject *pair = Py_BuildValue("(ii)", (int)c->copies[i].src, (int)c->copies[i].dst);
        if (pair == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SetItem(list, i, pair);
    }
    if (list != NULL) {
        c->n_copies = 0;
    }
    return list;
}

static PyObject *list_refs(const la_kvcache *c)
{
    PyObject *list = PyList_New((Py_ssize_t)c->n_pages);
    for (int64_t i = 0; list != NULL && i < c->n_pages; i++) {
        PyObject *count = PyLong_FromLong(c->refs[i]);
        if (count == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SetItem(list, (Py_ssize_t)i, count);
    }
    return list;
}

/* ---- PagePool --------------------------------------------------------------------------------- */

typedef struct pool_object {
    PyObject_HEAD
    la_kvcache cache;
    shelf tables;
} pool_object;

static int pool_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    pool_object *o = (pool_object *)self;
    long long n_pages;
    int max_copies;
    static char *names[] = {"n_pages", "max_copies", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Li:PagePool", names, &n_pages, &max_copies)) {
        return -1;
    }
    if (o->cache.refs != NULL || max_copies < 0) {
        PyErr_SetString(PyExc_ValueError, "PagePool: made twice, or negative max_copies");
        return -1;
    }
    la_status st = la_kvcache_init(&o->cache, n_pages, max_copies);
    return st == LA_OK ? 0 : (raise_last(st), -1);
}

static void pool_dealloc(PyObject *self)
{
    pool_object *o = (pool_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; i < o->tables.n; i++) {
        la_free(o->tables.items[i]);
    }
    PyMem_Free(o->tables.items);
    la_kvcache_free(&o->cache);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *pool_table(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    int cap;
    if (!PyArg_ParseTuple(args, "i:table", &cap)) {
        return NULL;
    }
    if (cap < 1 || cap > (1 << 20)) {
        return PyErr_Format(PyExc_ValueError, "cap: %d", cap);
    }
    la_table *t = la_alloc(1, sizeof *t + (size_t)cap * sizeof(int32_t));
    if (t == NULL) {
        return PyErr_NoMemory();
    }
    t->pages = (int32_t *)(void *)(t + 1);
    t->cap = cap;
    Py_ssize_t number = shelf_put(&o->tables, t);
    if (number < 0) {
        la_free(t);
        return NULL;
    }
    return PyLong_FromSsize_t(number);
}

static PyObject *pool_grow(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    Py_ssize_t number;
    la_table *t;
    if (!PyArg_ParseTuple(args, "n:grow", &number) || (t = shelf_get(&o->tables, number)) == NULL) {
        return NULL;
    }
    if (t->n == t->cap) {
        return PyErr_Format(PyExc_ValueError, "table %zd is full", number);
    }
    return PyBool_FromLong(la_kvcache_grow(&o->cache, t));
}

static PyObject *pool_own(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    Py_ssize_t number;
    int i;
    la_table *t;
    if (!PyArg_ParseTuple(args, "ni:own", &number, &i) ||
        (t = shelf_get(&o->tables, number)) == NULL) {
        return NULL;
    }
    if (i < 0 || i >= t->n) {
        return PyErr_Format(PyExc_IndexError, "table %zd has %d pages, not %d", number, t->n, i);
    }
    return PyBool_FromLong(la_kvcache_own(&o->cache, t, i));
}

static PyObject *pool_fork(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    Py_ssize_t from, to;
    int n;
    la_table *src, *dst;
    if (!PyArg_ParseTuple(args, "nin:fork", &from, &n, &to) ||
        (src = shelf_get(&o->tables, from)) == NULL || (dst = shelf_get(&o->tables, to)) == NULL) {
        return NULL;
    }
    if (n < 0 || n > src->n || n > dst->cap || dst->n != 0) {
        return PyErr_Format(PyExc_ValueError, "fork: %d pages of %d into %d with %d", n, src->n,
                            dst->cap, dst->n);
    }
    la_kvcache_fork(&o->cache, src, n, dst);
    Py_RETURN_NONE;
}

static PyObject *pool_clear(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    Py_ssize_t number;
    la_table *t;
    if (!PyArg_ParseTuple(args, "n:clear", &number) ||
        (t = shelf_get(&o->tables, number)) == NULL) {
        return NULL;
    }
    la_kvcache_clear(&o->cache, t);
    Py_RETURN_NONE;
}

static PyObject *pool_pages(PyObject *self, PyObject *args)
{
    pool_object *o = (pool_object *)self;
    Py_ssize_t number;
    la_table *t;
    if (!PyArg_ParseTuple(args, "n:pages", &number) ||
        (t = shelf_get(&o->tables, number)) == NULL) {
        return NULL;
    }
    return list_pages(t);
}

static PyObject *pool_copies(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return take_copies(&((pool_object *)self)->cache);
}

static PyObject *pool_refs(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return list_refs(&((pool_object *)self)->cache);
}

static PyObject *pool_settle(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLongLong(la_kvcache_settle(&((pool_object *)self)->cache));
}

static PyObject *pool_counts(PyObject *self, PyObject *Py_UNUSED(unused))
{
    const la_kvcache *c = &((pool_object *)self)->cache;
    return Py_BuildValue("{sLsL}", "used", (long long)c->n_used, "high", (long long)c->high);
}

static PyMethodDef pool_methods[] = {
    {"table", pool_table, METH_VARARGS, "table(cap) -> number of a new empty table."},
    {"grow", pool_grow, METH_VARARGS, "grow(table) -> whether a fresh page was appended."},
    {"own", pool_own, METH_VARARGS, "own(table, i) -> whether page i is now the table's alone."},
    {"fork", pool_fork, METH_VARARGS, "fork(src, n, dst): dst shares the first n pages of src."},
    {"clear", pool_clear, METH_VARARGS, "clear(table): lets go of all its pages."},
    {"pages", pool_pages, METH_VARARGS, "pages(table) -> list of page numbers."},
    {"copies", pool_copies, METH_NOARGS, "copies() -> [(src, dst)] not yet made; taken off."},
    {"refs", pool_refs, METH_NOARGS, "refs() -> references of each page."},
    {"settle", pool_settle, METH_NOARGS, "settle() -> one past the highest page in use."},
    {"counts", pool_counts, METH_NOARGS, "counts() -> dict of used and high."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_init, pool_init},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods},
    {Py_tp_doc, "PagePool(n_pages, max_copies): engine/kvcache.c, for tests."},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "llmaccel._core.PagePool",
    .basicsize = sizeof(pool_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = pool_slots,
};

/* ---- StepScheduler ---------------------------------------------------------------------------- */

typedef struct sched_object {
    PyObject_HEAD
    la_kvcache cache;
    la_sched sched;
    shelf groups; /* la_group, each the start of one allocation */
} sched_object;

static int sched_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    sched_object *o = (sched_object *)self;
    long long n_pages, max_entries;
    int max_seqs, budget;
    static char *names[] = {"n_pages", "max_seqs", "budget", "max_entries", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LiiL:StepScheduler", names, &n_pages, &max_seqs,
                                     &budget, &max_entries)) {
        return -1;
    }
    if (o->cache.refs != NULL || max_seqs < 1 || budget < 1 || max_entries < 0) {
        PyErr_SetString(PyExc_ValueError, "StepScheduler: made twice, or a limit out of range");
        return -1;
    }
    la_status st = la_kvcache_init(&o->cache, n_pages, 2 * max_seqs);
    if (st == LA_OK) {
        st = la_sched_init(&o->sched, &o->cache, max_seqs, budget, max_entries);
    }
    return st == LA_OK ? 0 : (raise_last(st), -1);
}

static void sched_dealloc(PyObject *self)
{
    sched_object *o = (sched_object *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; i < o->groups.n; i++) {
        la_free(o->groups.items[i]);
    }
    PyMem_Free(o->groups.items);
    la_sched_free(&o->sched);
    la_kvcache_free(&o->cache);
    type->tp_free(self);
    Py_DECREF(type);
}

/* What a test asks of one request. */
typedef struct asked {
    int n_prompt, n_branches, n_suffix, n_new, priority, score, forced_cost, sample_cost;
    int beams;
} asked;

enum { LA_TESTED_BEAMS = 16 };

static la_group *make_group(const asked *a)
{
    int forced = a->n_prompt + a->n_suffix;
    int n_max = a->n_new > 0 ? forced + a->n_new - 1 : forced - 1;
    int n_prefix = a->n_branches > 1 ? a->n_prompt - 1 : 0;
    size_t cap = (size_t)la_kvcache_span(n_max);
    size_t prefix_cap = (size_t)la_kvcache_span(n_prefix);
    size_t n = (size_t)a->n_branches;
    la_group *g = la_alloc(1, sizeof *g + n * (sizeof(la_seq) + sizeof(la_table)) +
                                  (2 * n * cap + prefix_cap) * sizeof(int32_t));
    if (g == NULL) {
        return NULL;
    }
    la_seq *seqs = (la_seq *)(void *)(g + 1);
    la_table *spare = (la_table *)(void *)(seqs + n);
    int32_t *pages = (int32_t *)(void *)(spare + n);
    g->spare = a->beams ? spare : NULL;
    g->seqs = seqs;
    g->n_seqs = a->n_branches;
    g->n_prefix = n_prefix;
    g->prefix = (la_table){pages + 2 * n * cap, 0, (int)prefix_cap};
    for (int b = 0; b < a->n_branches; b++) {
        spare[b] = (la_table){pages + (n + (size_t)b) * cap, 0, (int)cap};
        seqs[b] = (la_seq){.group = g,
                           .branch = b,
                           .state = a->beams && b > 0 ? LA_SEQ_HELD : LA_SEQ_PARKED,
                           .node.hi = a->priority,
                           .n_todo = a->n_new > 0 ? forced : n_max,
                           .n_max = n_max,
                           .n_forced = forced,
                           .first_row = b == 0 && a->score ? 0 : a->n_prompt - 1,
                           .forced_cost = a->forced_cost,
                           .sample_cost = a->sample_cost,
                           .table = {pages + (size_t)b * cap, 0, (int)cap}};
    }
    return g;
}

static PyObject *sched_add(PyObject *self, PyObject *args, PyObject *kwargs)
{
    sched_object *o = (sched_object *)self;
    asked a = {.n_branches = 1, .n_new = 1};
    static char *names[] = {"n_prompt", "n_branches",  "n_suffix",    "n_new", "priority",
                            "score",    "forced_cost", "sample_cost", "beams", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|$iiiipiip:add", names, &a.n_prompt,
                                     &a.n_branches, &a.n_suffix, &a.n_new, &a.priority, &a.score,
                                     &a.forced_cost, &a.sample_cost, &a.beams)) {
        return NULL;
    }
    const int most = 1 << 20;
    int64_t fed = (int64_t)a.n_prompt + a.n_suffix + a.n_new - 1;
    if (a.n_prompt < 1 || a.n_branches < 1 || a.n_suffix < 0 || a.n_new < 0 ||
        a.n_branches > 16384 || fed > most || (a.n_new == 0 && a.n_suffix == 0) ||
        (a.beams && (a.n_new == 0 || a.n_suffix > 0))) {
        return PyErr_Format(PyExc_ValueError, "add: lengths out of range");
    }
    if (la_kvcache_span((int)fed) > o->cache.n_pages || a.forced_cost > o->sched.max_entries ||
        a.sample_cost > o->sched.max_entries || a.forced_cost < 0 || a.sample_cost < 0) {
        return PyErr_Format(PyExc_ValueError, "add: can never fit");
    }
    la_group *g = make_group(&a);
    if (g == NULL) {
        return PyErr_NoMemory();
    }
    Py_ssize_t number = shelf_put(&o->groups, g);
    if (number < 0) {
        la_free(g);
        return NULL;
    }
    la_sched_add(&o->sched, g);
    return PyLong_FromSsize_t(number);
}

/* (group, branch, first position, tokens, first row's position, [pages]) */
static PyObject *describe_plan(const sched_object *o, const la_seq *q)
{
    Py_ssize_t number = 0;
    while (o->groups.items[number] != q->group) {
        number++;
    }
    PyObject *pages = list_pages(&q->table);
    return pages == NULL ? NULL
                         : Py_BuildValue("(niiiiN)", number, q->branch, q->n_done, q->n_run,
                                         q->first_row, pages);
}

static PyObject *sched_plan(PyObject *self, PyObject *Py_UNUSED(unused))
{
    sched_object *o = (sched_object *)self;
    la_sched_plan(&o->sched);
    PyObject *list = PyList_New(o->sched.n_planned);
    for (int i = 0; list != NULL && i < o->sched.n_planned; i++) {
        PyObject *item = describe_plan(o, o->sched.planned[i]);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SetItem(list, i, item);
    }
    return list;
}

static PyObject *sched_commit(PyObject *self, PyObject *Py_UNUSED(unused))
{
    la_sched_commit(&((sched_object *)self)->sched);
    Py_RETURN_NONE;
}

/* The sequence that (group, branch) names, or NULL with an exception set. */
static la_seq *sched_seq(const sched_object *o, PyObject *args)
{
    Py_ssize_t number;
    int branch;
    const la_group *g;
    if (!PyArg_ParseTuple(args, "ni", &number, &branch) ||
        (g = shelf_get(&o->groups, number)) == NULL) {
        return NULL;
    }
    if (branch < 0 || branch >= g->n_seqs) {
        PyErr_Format(PyExc_IndexError, "group %zd has no branch %d", number, branch);
        return NULL;
    }
    return &g->seqs[branch];
}

static PyObject *sched_extend(PyObject *self, PyObject *args)
{
    la_seq *q = sched_seq((sched_object *)self, args);
    if (q == NULL) {
        return NULL;
    }
    if (q->state != LA_SEQ_RUNNING || q->n_done != q->n_todo || q->n_todo == q->n_max) {
        return PyErr_Format(PyExc_ValueError, "extend: not fed to the end, or at its most");
    }
    la_sched_extend(q);
    Py_RETURN_NONE;
}

static PyObject *sched_reform(PyObject *self, PyObject *args)
{
    sched_object *o = (sched_object *)self;
    Py_ssize_t number;
    PyObject *list;
    la_group *g;
    int parents[LA_TESTED_BEAMS];
    if (!PyArg_ParseTuple(args, "nO!:reform", &number, &PyList_Type, &list) ||
        (g = shelf_get(&o->groups, number)) == NULL) {
        return NULL;
    }
    Py_ssize_t n = PyList_Size(list);
    int whole = g->spare != NULL && n >= 1 && n <= g->n_seqs && n <= LA_TESTED_BEAMS &&
                g->seqs[0].n_todo < g->seqs[0].n_max;
    for (Py_ssize_t k = 0; whole && k < n; k++) {
        long parent = PyLong_AsLong(PyList_GetItem(list, k));
        whole = parent >= 0 && parent < g->n_seqs;
        parents[k] = (int)parent;
    }
    if (!whole) {
        PyErr_Clear();
        return PyErr_Format(PyExc_ValueError, "reform: no beams, parents out of range, or at most");
    }
    la_sched_reform(&o->sched, g, parents, (int)n);
    Py_RETURN_NONE;
}

static PyObject *sched_finish(PyObject *self, PyObject *args)
{
    sched_object *o = (sched_object *)self;
    la_seq *q = sched_seq(o, args);
    if (q == NULL) {
        return NULL;
    }
    if (q->state == LA_SEQ_DONE) {
        return PyErr_Format(PyExc_ValueError, "finish: has finished");
    }
    la_sched_finish(&o->sched, q);
    Py_RETURN_NONE;
}

static PyObject *sched_preempt(PyObject *self, PyObject *args)
{
    int n;
    if (!PyArg_ParseTuple(args, "i:preempt", &n)) {
        return NULL;
    }
    la_sched_preempt(&((sched_object *)self)->sched, n);
    Py_RETURN_NONE;
}

static PyObject *sched_state(PyObject *self, PyObject *args)
{
    static const char *const names[] = {"parked", "waiting", "running", "done", "held"};
    const la_seq *q = sched_seq((sched_object *)self, args);
    PyObject *pages = q != NULL ? list_pages(&q->table) : NULL;
    if (pages == NULL) {
        return NULL;
    }
    return Py_BuildValue("{sssisisisN}", "state", names[q->state], "todo", q->n_todo, "done",
                         q->n_done, "high", q->n_high, "pages", pages);
}

/* Pages that groups hold for branches yet to start: [(group, [pages])] */
static PyObject *sched_held(PyObject *self, PyObject *Py_UNUSED(unused))
{
    const sched_object *o = (sched_object *)self;
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < o->groups.n; i++) {
        const la_group *g = o->groups.items[i];
        if (g->prefix.n == 0) {
            continue;
        }
        PyObject *pages = list_pages(&g->prefix);
        PyObject *item = pages != NULL ? Py_BuildValue("(nN)", i, pages) : NULL;
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *sched_copies(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return take_copies(&((sched_object *)self)->cache);
}

static PyObject *sched_refs(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return list_refs(&((sched_object *)self)->cache);
}

static PyObject *sched_counts(PyObject *self, PyObject *Py_UNUSED(unused))
{
    const sched_object *o = (sched_object *)self;
    const la_sched *s = &o->sched;
    return Py_BuildValue("{sisLsLsLsLsL}", "running", s->n_running, "waiting",
                         (long long)s->waiting.n, "parked", (long long)s->n_parked, "preempted",
                         (long long)s->n_preempted, "recomputed", (long long)s->n_recomputed,
                         "used", (long long)o->cache.n_used);
}

static PyMethodDef sched_methods[] = {
    {"add", (PyCFunction)(void (*)(void))sched_add, METH_VARARGS | METH_KEYWORDS,
     "add(n_prompt, *, n_branches=1, n_suffix=0, n_new=1, priority=0, score=False,\n"
     "    forced_cost=0, sample_cost=0, beams=False) -> number of the new group."},
    {"plan", sched_plan, METH_NOARGS,
     "plan() -> [(group, branch, first position, tokens, first row's position, [pages])]"},
    {"commit", sched_commit, METH_NOARGS, "commit(): the planned tokens were fed."},
    {"extend", sched_extend, METH_VARARGS, "extend(group, branch): one more token to feed."},
    {"reform", sched_reform, METH_VARARGS,
     "reform(group, parents): every beam is fed; these go on, with one more token."},
    {"finish", sched_finish, METH_VARARGS, "finish(group, branch): done or cancelled."},
    {"preempt", sched_preempt, METH_VARARGS, "preempt(n): the last n running go back to wait."},
    {"state", sched_state, METH_VARARGS, "state(group, branch) -> dict."},
    {"held", sched_held, METH_NOARGS, "held() -> [(group, [pages])] of held prefixes."},
    {"copies", sched_copies, METH_NOARGS, "copies() -> [(src, dst)] not yet made; taken off."},
    {"refs", sched_refs, METH_NOARGS, "refs() -> references of each page."},
    {"counts", sched_counts, METH_NOARGS, "counts() -> dict of the scheduler's counters."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot sched_slots[] = {
    {Py_tp_init, sched_init},
    {Py_tp_dealloc, sched_dealloc},
    {Py_tp_methods, sched_methods},
    {Py_tp_doc, "StepScheduler(n_pages, max_seqs, budget, max_entries): engine/scheduler.c, for "
                "tests."},
    {0, NULL},
};

static PyType_Spec sched_spec = {
    .name = "llmaccel._core.StepScheduler",
    .basicsize = sizeof(sched_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = sched_slots,
};

static PyObject *cgroup_cpus(PyObject *Py_UNUSED(module), PyObject *root)
{
    const char *path = PyUnicode_AsUTF8(root);
    return path == NULL ? NULL : PyLong_FromLong(la_cgroup_cpus(path));
}

static PyMethodDef functions[] = {
    {"cgroup_cpus", cgroup_cpus, METH_O, "cgroup_cpus(root) -> processors allowed; 0: no limit."},
    {NULL, NULL, 0, NULL},
};

int py_testing_register(PyObject *module)
{
    if (PyModule_AddFunctions(module, functions) < 0) {
        return -1;
    }
    PyType_Spec *specs[] = {&pool_spec, &sched_spec};
    for (int i = 0; i < 2; i++) {
        PyTypeObject *type = NULL;
        int rc = py_add_type(module, specs[i], &type);
        Py_XDECREF(type); /* the module keeps it */
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}
