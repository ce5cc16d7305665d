/* py_engine.c - the Python object Engine: requests in, events out.
 *
 * Owns one la_engine, a reference to its Model, and what requests hold until they finish: the buffers of
 * logits and hidden states that they write into, the function that changes logits of draws. Invariant: add and cancel may be called from any thread at any time, step from one at a
 * time; close waits for nobody and is refused while a call is inside the core. An event is a plain
 * tuple whose ids and log probabilities stay packed bytes until somebody reads them.
 */
#include "py_module.h"

#include <limits.h>

enum {
    SHOWN_LOGITS,
    SHOWN_DRAWN_LOGITS,
    SHOWN_STATES,
    SHOWN_DRAWN_STATES,
    SHOWN_PROCESS, /* the rows that process changes */
    N_SHOWN
};

typedef struct kept_request {
    struct kept_request *next;
    int64_t id;
    int n_open;               /* branches still to finish: any of them may outlive the others */
    Py_buffer views[N_SHOWN]; /* float32, shaped as la_request says; obj is NULL: not wanted */
    PyObject *process;        /* process(branch) -> whether it failed; NULL: none */
} kept_request;

static void kept_free(kept_request *kept)
{
    if (kept == NULL) {
        return;
    }
    for (int i = 0; i < N_SHOWN; i++) {
        PyBuffer_Release(&kept->views[i]); /* a no-op where there is none */
    }
    Py_XDECREF(kept->process);
    PyMem_Free(kept);
}

typedef struct py_engine {
    PyObject_HEAD
    PyObject *model;
    la_engine *handle;  /* NULL once closed */
    kept_request *kept; /* of requests that have not finished */
    int calls;          /* inside la_ functions with the GIL released */
    int stepping;
    long pid;
} py_engine;

static py_engine *engine_open(py_state *state, PyObject *object)
{
    py_engine *self = (py_engine *)object;
    if (py_same_process(state, self->pid, "this Engine") < 0) {
        return NULL;
    }
    if (self->handle == NULL) {
        py_raise_format(state, LA_ERR_STATE, "this Engine is closed");
        return NULL;
    }
    return self;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"model", "limits", NULL};
    PyObject *model, *mapping;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Engine", names, &model, &mapping)) {
        return NULL;
    }
    py_state *state = (py_state *)PyType_GetModuleState(type);
    la_model *model_handle = py_model_get(state, model);
    la_limits limits;
    if (model_handle == NULL || py_limits_from(state, mapping, &limits) < 0) {
        return NULL;
    }
    py_engine *self = (py_engine *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->pid = py_process();
    self->model = Py_NewRef(model);
    py_model_hold(model, 1);
    la_status status;
    Py_BEGIN_ALLOW_THREADS
    status = la_engine_create(model_handle, &limits, &self->handle);
    Py_END_ALLOW_THREADS
    if (status != LA_OK) {
        Py_DECREF(self);
        return py_raise(state, status);
    }
    return (PyObject *)self;
}

static void engine_free_handle(py_engine *self)
{
    la_engine *handle = self->handle;
    self->handle = NULL;
    if (handle != NULL && self->pid == py_process()) {
        Py_BEGIN_ALLOW_THREADS
        la_engine_free(handle);
        Py_END_ALLOW_THREADS
    }
    while (self->kept != NULL) { /* after the engine: it may write until then */
        kept_request *next = self->kept->next;
        kept_free(self->kept);
        self->kept = next;
    }
    if (self->model != NULL) {
        py_model_hold(self->model, -1);
        Py_CLEAR(self->model);
    }
}

static void engine_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    engine_free_handle((py_engine *)object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *engine_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_engine *self = (py_engine *)object;
    py_state *state = py_state_of_object(object);
    if (py_same_process(state, self->pid, "this Engine") < 0) {
        return NULL;
    }
    if (self->calls > 0) {
        return py_raise_format(state, LA_ERR_STATE, "this Engine is in use by another thread");
    }
    engine_free_handle(self);
    Py_RETURN_NONE;
}

/* ---- add ---------------------------------------------------------------------------------------- */

/* What a la_request points to. */
typedef struct request_holder {
    la_request request;
    int32_t *prompt;
    py_params params;
    py_id_lists suffixes;
    int32_t *layers;
    kept_request *kept; /* NULL: nothing has to stay */
} request_holder;

static void request_clear(request_holder *holder)
{
    PyMem_Free(holder->prompt);
    py_params_clear(&holder->params);
    py_id_lists_clear(&holder->suffixes);
    PyMem_Free(holder->layers);
    kept_free(holder->kept);
}

static const char *const SHOWN_NAMES[N_SHOWN] = {"logits", "drawn_logits", "states", "drawn_states",
                                                 "process"};

/* Takes hold of the buffer `object` for the values named; `rows` of `cols` are expected, in all. */
static float *shown_from(const py_state *state, PyObject *object, int which, const int64_t size[2],
                         request_holder *holder)
{
    if (holder->kept == NULL) {
        holder->kept = PyMem_Calloc(1, sizeof *holder->kept);
    }
    if (holder->kept == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    Py_buffer *view = &holder->kept->views[which];
    if (PyObject_GetBuffer(object, view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    int64_t have = view->len / (int64_t)sizeof(float);
    int fits = size[0] > 0 && have % size[0] == 0 && have / size[0] == size[1];
    if (view->format == NULL || strcmp(view->format, "f") != 0 || !fits) {
        py_raise_format(state, LA_ERR_REQUEST, "%s: expected writable float32 [%lld, %lld]",
                        SHOWN_NAMES[which], (long long)size[0], (long long)size[1]);
        return NULL;
    }
    return view->buf;
}

/* Runs the request's function on the row that it knows by its branch. The GIL is not held. */
static int call_process(void *arg, int branch, float *logits)
{
    kept_request *kept = arg;
    (void)logits; /* a row of kept->views[SHOWN_PROCESS], which Python has as an array */
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction(kept->process, "i", branch);
    int failed = result == NULL ? -1 : PyObject_IsTrue(result);
    if (failed < 0) {
        PyErr_WriteUnraisable(kept->process);
    }
    Py_XDECREF(result);
    PyGILState_Release(gil);
    return failed != 0;
}

/* (function, rows): the rows go among the buffers of objects; returns the function, borrowed. */
static PyObject *process_parts(const py_state *state, PyObject *process, PyObject **rows)
{
    PyObject *function;
    if (!PyTuple_Check(process)) {
        py_raise_format(state, LA_ERR_REQUEST, "process: expected (function, rows)");
        return NULL;
    }
    return PyArg_ParseTuple(process, "OO:process", &function, rows) ? function : NULL;
}

/* The buffers that are given, checked against the sizes that follow from the rest of the request. */
static int request_shown(const py_state *state, PyObject *objects[N_SHOWN], PyObject *layers,
                         const py_model_sizes *of, request_holder *holder)
{
    la_request *r = &holder->request;
    PyObject *function = NULL;
    if (objects[SHOWN_PROCESS] != Py_None) {
        function = process_parts(state, objects[SHOWN_PROCESS], &objects[SHOWN_PROCESS]);
        if (function == NULL) {
            return -1;
        }
    }
    if (layers != Py_None) {
        holder->layers = py_ids_from(state, layers, "layers", &r->n_states);
        if (holder->layers == NULL) {
            return -1;
        }
        r->state_layers = holder->layers;
    }
    int64_t drawn = (int64_t)r->n_branches * r->sampling.max_tokens; /* both of 31 bits */
    int64_t state_cols = (int64_t)r->n_states * of->d_model;
    int64_t rows = (int64_t)r->state_to - r->state_from;
    const int64_t sizes[N_SHOWN][2] = {{r->n_prompt, of->n_vocab},
                                       {drawn, of->n_vocab},
                                       {rows, state_cols},
                                       {drawn, state_cols},
                                       {r->n_branches, of->n_vocab}};
    float **const fields[N_SHOWN] = {&r->logits, &r->drawn_logits, &r->states, &r->drawn_states,
                                     &r->process_rows};
    for (int i = 0; i < N_SHOWN; i++) {
        if (objects[i] == Py_None) {
            continue;
        }
        *fields[i] = shown_from(state, objects[i], i, sizes[i], holder);
        if (*fields[i] == NULL) {
            return -1;
        }
    }
    if (function != NULL) {
        holder->kept->process = Py_NewRef(function);
        r->process = call_process;
        r->process_arg = holder->kept;
    }
    return 0;
}

/* 0, or -1 with an exception set; request_clear in both cases. */
static int request_parse(py_state *state, PyObject *args, PyObject *kwargs,
                         const py_model_sizes *of, request_holder *holder)
{
    static char *names[] = {
        "prompt",   "params",       "branches",       "suffixes",     "priority",   "timeout",
        "logits",   "drawn_logits", "states",         "drawn_states", "layers",     "state_from",
        "state_to", "process",      "length_penalty", "beam",         "skip_first", NULL};
    PyObject *prompt, *params, *suffixes = Py_None, *layers = Py_None, *penalty = Py_None;
    PyObject *shown[N_SHOWN] = {Py_None, Py_None, Py_None, Py_None, Py_None};
    int rule = LA_BEAM_VLLM;
    la_request *r = &holder->request;
    memset(holder, 0, sizeof *holder);
    r->n_branches = 1;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "OO|$iOidOOOOOiiOOip:add", names, &prompt, &params, &r->n_branches,
            &suffixes, &r->priority, &r->timeout, &shown[SHOWN_LOGITS], &shown[SHOWN_DRAWN_LOGITS],
            &shown[SHOWN_STATES], &shown[SHOWN_DRAWN_STATES], &layers, &r->state_from, &r->state_to,
            &shown[SHOWN_PROCESS], &penalty, &rule, &r->skip_first)) {
        return -1;
    }
    if (penalty != Py_None) {
        r->beam = rule;
        r->length_penalty = PyFloat_AsDouble(penalty);
        if (PyErr_Occurred() != NULL) {
            return -1;
        }
    }
    holder->prompt = py_ids_from(state, prompt, "prompt", &r->n_prompt);
    if (holder->prompt == NULL || py_params_parse(state, params, &holder->params) < 0) {
        return -1;
    }
    r->prompt = holder->prompt;
    r->sampling = holder->params.sampling;
    if (suffixes != Py_None) {
        if (py_id_lists_from(state, suffixes, "suffixes", &holder->suffixes) < 0) {
            return -1;
        }
        r->suffix = holder->suffixes.flat;
        r->suffix_len = holder->suffixes.lengths;
        if (holder->suffixes.n != r->n_branches) {
            py_raise_format(state, LA_ERR_REQUEST, "suffixes: expected one for each of %d branches",
                            r->n_branches);
            return -1;
        }
    }
    return request_shown(state, shown, layers, of, holder);
}

static PyObject *engine_add(PyObject *object, PyObject *args, PyObject *kwargs)
{
    py_state *state = py_state_of_object(object);
    py_engine *self = engine_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    request_holder holder;
    py_model_sizes of = py_model_sizes_of(self->model);
    int failed = request_parse(state, args, kwargs, &of, &holder) < 0;
    la_status status = LA_OK;
    int64_t id = 0;
    if (!failed && holder.kept != NULL) {
        /* With the GIL: the step's FINISH must not be converted before this is on the list. */
        status = la_engine_add(self->handle, &holder.request, &id);
        if (status == LA_OK) {
            holder.kept->id = id;
            holder.kept->n_open = holder.request.n_branches;
            holder.kept->next = self->kept;
            self->kept = holder.kept;
            holder.kept = NULL;
        }
    }
    else if (!failed) {
        self->calls++;
        Py_BEGIN_ALLOW_THREADS
        status = la_engine_add(self->handle, &holder.request, &id);
        Py_END_ALLOW_THREADS
        self->calls--;
    }
    request_clear(&holder);
    if (failed || status != LA_OK) {
        return status != LA_OK ? py_raise(state, status) : NULL;
    }
    return PyLong_FromLongLong(id);
}

static PyObject *engine_cancel(PyObject *object, PyObject *args)
{
    long long id;
    int branch = -1;
    if (!PyArg_ParseTuple(args, "L|i:cancel", &id, &branch)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_engine *self = engine_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    la_status status;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_engine_cancel(self->handle, id, branch);
    Py_END_ALLOW_THREADS
    self->calls--;
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    Py_RETURN_NONE;
}

static PyObject *engine_kv(PyObject *object, PyObject *args)
{
    long long id;
    int branch, n = 0;
    PyObject *out = Py_None;
    Py_buffer room = {.obj = NULL};
    if (!PyArg_ParseTuple(args, "Li|O:kv", &id, &branch, &out)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_engine *self = engine_open(state, object);
    if (self == NULL ||
        (out != Py_None && PyObject_GetBuffer(out, &room, PyBUF_CONTIG) < 0)) { /* writable */
        return NULL;
    }
    size_t bytes = room.obj != NULL ? (size_t)room.len : 0;
    la_status status;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_engine_kv(self->handle, id, branch, &n, &bytes, room.obj != NULL ? room.buf : NULL);
    Py_END_ALLOW_THREADS
    self->calls--;
    PyBuffer_Release(&room);
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    return Py_BuildValue("in", n, (Py_ssize_t)bytes);
}

/* ---- step --------------------------------------------------------------------------------------- */

/* A branch of the request has finished; with the last one nothing uses what was kept any more. */
static void release_kept(py_engine *self, int64_t id)
{
    for (kept_request **at = &self->kept; *at != NULL; at = &(*at)->next) {
        if ((*at)->id == id) {
            kept_request *done = *at;
            if (--done->n_open > 0) {
                return;
            }
            *at = done->next;
            kept_free(done);
            return;
        }
    }
}

/* n packed values as bytes, or None for none. */
static PyObject *packed(const void *values, int n)
{
    if (n <= 0) {
        Py_RETURN_NONE;
    }
    return PyBytes_FromStringAndSize(values, (Py_ssize_t)n * 4);
}

static PyObject *event_tuple(const la_event *event)
{
    enum { N_ITEMS = 11 };
    PyObject *items[N_ITEMS] = {
        PyLong_FromLongLong(event->request),  PyLong_FromLong(event->branch),
        PyLong_FromLong(event->kind),         PyLong_FromLong(event->position),
        PyLong_FromLong(event->token),        PyLong_FromLong(event->reason),
        PyFloat_FromDouble(event->logprob),   PyLong_FromLong(event->rank),
        packed(event->top_ids, event->n_top), packed(event->top_logprobs, event->n_top),
        PyFloat_FromDouble(event->scheduled),
    };
    PyObject *tuple = PyTuple_New(N_ITEMS);
    for (int i = 0; i < N_ITEMS; i++) {
        if (tuple == NULL || items[i] == NULL) {
            Py_XDECREF(items[i]);
            Py_CLEAR(tuple);
        }
        else {
            PyTuple_SET_ITEM(tuple, i, items[i]);
        }
    }
    return tuple;
}

static PyObject *engine_step(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_state *state = py_state_of_object(object);
    py_engine *self = engine_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    if (self->stepping) {
        return py_raise_format(state, LA_ERR_STATE, "another thread is inside step()");
    }
    if (!py_model_enter(self->model)) {
        return py_raise_format(state, LA_ERR_STATE, "weights of the Model are being set");
    }
    const la_event *events = NULL;
    int n = 0;
    la_status status;
    self->stepping = 1;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_engine_step(self->handle, &events, &n);
    Py_END_ALLOW_THREADS
    py_model_leave(self->model);
    /* Until the tuples are made the events must stay: nobody else may step or close. */
    PyObject *list = status == LA_OK ? PyList_New(n) : py_raise(state, status);
    for (int i = 0; list != NULL && i < n; i++) {
        PyObject *tuple = event_tuple(&events[i]);
        if (tuple == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, tuple);
        if (events[i].kind == LA_EVENT_FINISH && self->kept != NULL) {
            release_kept(self, events[i].request);
        }
    }
    self->stepping = 0;
    self->calls--;
    return list;
}

static PyObject *engine_preempt(PyObject *object, PyObject *args)
{
    int n;
    if (!PyArg_ParseTuple(args, "i:preempt", &n)) {
        return NULL;
    }
    py_state *state = py_state_of_object(object);
    py_engine *self = engine_open(state, object);
    if (self == NULL) {
        return NULL;
    }
    la_status status;
    self->calls++;
    Py_BEGIN_ALLOW_THREADS
    status = la_engine_preempt(self->handle, n);
    Py_END_ALLOW_THREADS
    self->calls--;
    if (status != LA_OK) {
        return py_raise(state, status);
    }
    Py_RETURN_NONE;
}

static PyObject *engine_has_work(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_engine *self = engine_open(py_state_of_object(object), object);
    return self == NULL ? NULL : PyBool_FromLong(la_engine_has_work(self->handle));
}

static PyObject *engine_stats(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_engine *self = engine_open(py_state_of_object(object), object);
    if (self == NULL) {
        return NULL;
    }
    la_engine_stats s;
    la_engine_get_stats(self->handle, &s);
    return Py_BuildValue(
        "{s:i,s:i,s:L,s:L,s:L,s:n,s:n,s:L,s:L,s:L,s:L,s:L,s:L,s:i,s:d,s:d,s:d,s:d}", "running",
        s.running, "waiting", s.waiting, "pages_cap", (long long)s.pages_cap, "pages_committed",
        (long long)s.pages_committed, "pages_used", (long long)s.pages_used, "kv_bytes",
        (Py_ssize_t)s.kv_bytes, "workspace_bytes", (Py_ssize_t)s.workspace_bytes, "steps",
        (long long)s.steps, "prompt_tokens", (long long)s.prompt_tokens, "output_tokens",
        (long long)s.output_tokens, "recomputed_tokens", (long long)s.recomputed_tokens,
        "preemptions", (long long)s.preemptions, "step_allocations", (long long)s.step_allocations,
        "last_step_tokens", s.last_step_tokens, "last_step_seconds", s.last_step_seconds,
        "last_plan_seconds", s.last_plan_seconds, "last_forward_seconds", s.last_forward_seconds,
        "forward_seconds", s.forward_seconds);
}

static PyObject *engine_expert_load(PyObject *object, PyObject *unused)
{
    (void)unused;
    py_engine *self = engine_open(py_state_of_object(object), object);
    if (self == NULL) {
        return NULL;
    }
    size_t n = la_engine_expert_load(self->handle, NULL);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * sizeof(int64_t)));
    if (bytes != NULL) {
        (void)la_engine_expert_load(self->handle, (int64_t *)(void *)PyBytes_AS_STRING(bytes));
    }
    return bytes;
}

static PyMethodDef engine_methods[] = {
    {"add", (PyCFunction)(void (*)(void))engine_add, METH_VARARGS | METH_KEYWORDS,
     "add(prompt, params, *, branches=1, suffixes=None, priority=0, timeout=0.0, logits=None, "
     "drawn_logits=None, states=None, drawn_states=None, layers=None, state_from=0, state_to=0, "
     "process=None, length_penalty=None, beam=1, skip_first=False) -> int\n\nprompt: token ids. "
     "params: mapping of exactly "
     "sampling_fields(). logits to state_to are buffers and numbers of la_request. process: "
     "(function(branch) -> failed, float32 [branches, V]), called by step() with a branch's logits "
     "in its row. length_penalty: of a beam search by the branches; beam: LA_BEAM_*, its rule. "
     "skip_first: of la_request. Any thread."},
    {"kv", engine_kv, METH_VARARGS,
     "kv(id, branch, out=None) -> (tokens, bytes)\n\nWhat a branch has stored, and the bytes of "
     "its pages, [layer][page][kv head], copied to out. On the thread that steps, between two "
     "steps."},
    {"cancel", engine_cancel, METH_VARARGS,
     "cancel(id, branch=-1)\n\nTakes effect when the next step starts. Any thread."},
    {"step", engine_step, METH_NOARGS,
     "step() -> list\n\nTuples (request, branch, kind, position, token, reason, logprob, rank, "
     "top_ids, top_logprobs, scheduled); top_ids and top_logprobs are packed int32 and float32 "
     "bytes or None."},
    {"preempt", engine_preempt, METH_VARARGS, "preempt(n)\n\nTest hook."},
    {"has_work", engine_has_work, METH_NOARGS, "has_work() -> bool"},
    {"stats", engine_stats, METH_NOARGS, "stats() -> dict"},
    {"expert_load", engine_expert_load, METH_NOARGS,
     "expert_load() -> bytes\n\nTokens that every expert was given so far: int64 [n_layers, "
     "n_experts]."},
    {"close", engine_close, METH_NOARGS, "close()\n\nFree cache and workspace; may be repeated."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "Engine(model, limits)\n\nContinuous batching over a paged KV cache."},
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, engine_methods},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "llmaccel._core.Engine",
    .basicsize = (int)sizeof(py_engine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = engine_slots,
};

int py_engine_register(PyObject *module)
{
    PyObject *events = Py_BuildValue("(iii)", LA_EVENT_TOKEN, LA_EVENT_PROMPT, LA_EVENT_FINISH);
    if (events == NULL) {
        return -1;
    }
    int failed = PyModule_AddObjectRef(module, "EVENT_KINDS", events) < 0;
    Py_DECREF(events);
    return failed ? -1 : py_add_type(module, &engine_spec, &py_state_of(module)->engine_type);
}
