/* The twin of quick.py, which says what the functions are for.
 *
 * Rules: every length is compared with what is there before a byte is touched; what is not a plain
 * request ends the list, and is not judged. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define REQUEST_MAGIC 0x25609513u
#define SIMPLE_REPLY_MAGIC 0x67446698u
#define CMD_READ 0
#define CMD_WRITE 1
#define FLAG_FUA 1
#define BLOCK_MIN 512
#define BLOCK_MAX (32u << 20)
#define REQUEST_COST 4096
#define REQUEST_ITEMS 8

struct request {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

static PyObject *struct_error;
static PyObject *nothing;

static int has_arguments(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return 0;
}

/* nbd_plugin.native.transmission.Request, a NamedTuple; data: NULL for a READ. */
static PyObject *new_request(PyTypeObject *kind, const struct request *from, uint32_t length,
                             const char *data)
{
    int has_data = data != NULL;
    PyObject *made = kind->tp_alloc(kind, REQUEST_ITEMS);
    if (made == NULL)
        return NULL;
    PyTuple_SET_ITEM(made, 0, PyLong_FromLong(has_data ? CMD_WRITE : CMD_READ));
    PyTuple_SET_ITEM(made, 1, PyLong_FromLong(be16toh(from->flags)));
    PyTuple_SET_ITEM(made, 2, PyLong_FromUnsignedLongLong(be64toh(from->cookie)));
    PyTuple_SET_ITEM(made, 3, PyLong_FromUnsignedLongLong(be64toh(from->offset)));
    PyTuple_SET_ITEM(made, 4, PyLong_FromUnsignedLong(length));
    PyTuple_SET_ITEM(made, 5, PyLong_FromUnsignedLong(REQUEST_COST + length));
    PyTuple_SET_ITEM(made, 6,
                     has_data ? PyBytes_FromStringAndSize(data, length) : Py_NewRef(nothing));
    PyTuple_SET_ITEM(made, 7, PyLong_FromLong(0));
    for (int item = 0; item < REQUEST_ITEMS; item++) {
        if (PyTuple_GET_ITEM(made, item) == NULL) {
            Py_DECREF(made);
            return NULL;
        }
    }
    return made;
}

static PyObject *plain_requests(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    Py_ssize_t numbers[5]; /* start, end, size, budget, most */
    Py_buffer view;

    if (!has_arguments(count, 7))
        return NULL;
    for (int number = 0; number < 5; number++) {
        numbers[number] = PyLong_AsSsize_t(arguments[1 + number]);
        if (numbers[number] == -1 && PyErr_Occurred())
            return NULL;
    }
    Py_ssize_t start = numbers[0], end = numbers[1], budget = numbers[3], most = numbers[4];
    uint64_t size = numbers[2] < 0 ? 0 : numbers[2];
    PyTypeObject *kind = (PyTypeObject *)arguments[6];
    if (!PyType_Check(kind) || !PyType_IsSubtype(kind, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "expected a kind of tuple");
        return NULL;
    }
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *found = PyList_New(0);
    if (start < 0 || end > view.len)
        end = start; /* not of this buffer */
    while (found != NULL && most > 0 && end - start >= (Py_ssize_t)sizeof(struct request)) {
        const char *here = (const char *)view.buf + start;
        struct request request;
        memcpy(&request, here, sizeof request);
        unsigned command = be16toh(request.command);
        uint64_t offset = be64toh(request.offset);
        uint32_t length = be32toh(request.length);
        if (be32toh(request.magic) != REQUEST_MAGIC || command > CMD_WRITE ||
            be16toh(request.flags) & ~FLAG_FUA || !length || length > BLOCK_MAX ||
            length % BLOCK_MIN || offset % BLOCK_MIN || length > size || offset > size - length ||
            (Py_ssize_t)length + REQUEST_COST > budget)
            break;
        Py_ssize_t bytes = sizeof request + (command == CMD_WRITE ? length : 0);
        if (end - start < bytes)
            break;
        const char *data = command == CMD_WRITE ? here + sizeof request : NULL;
        PyObject *made = new_request(kind, &request, length, data);
        if (made == NULL || PyList_Append(found, made) < 0)
            Py_CLEAR(found);
        Py_XDECREF(made);
        start += bytes;
        budget -= (Py_ssize_t)length + REQUEST_COST;
        most--;
    }
    PyBuffer_Release(&view);
    return found == NULL ? NULL : Py_BuildValue("(Nnn)", found, start, budget);
}

static PyObject *simple_reply(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments(count, 2))
        return NULL;
    unsigned long long cookie = PyLong_AsUnsignedLongLong(arguments[0]);
    if (cookie == (unsigned long long)-1 && PyErr_Occurred())
        goto failed;
    unsigned long long error = PyLong_AsUnsignedLongLong(arguments[1]);
    if (error == (unsigned long long)-1 && PyErr_Occurred())
        goto failed;
    if (error > UINT32_MAX) {
        PyErr_SetString(struct_error, "a number does not fit its field");
        return NULL;
    }
    struct reply reply = {htobe32(SIMPLE_REPLY_MAGIC), htobe32(error), htobe64(cookie)};
    return PyBytes_FromStringAndSize((const char *)&reply, sizeof reply);
failed:
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_SetString(struct_error, "a number does not fit its field");
    return NULL;
}

static PyMethodDef functions[] = {
    {"plain_requests", (PyCFunction)(void (*)(void))plain_requests, METH_FASTCALL, NULL},
    {"simple_reply", (PyCFunction)(void (*)(void))simple_reply, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "nbd_plugin.native.quick",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_quick(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *from = PyImport_ImportModule("struct");

    if (from != NULL) {
        struct_error = PyObject_GetAttrString(from, "error");
        Py_DECREF(from);
    }
    nothing = PyBytes_FromStringAndSize(NULL, 0);
    if (module == NULL || struct_error == NULL || nothing == NULL) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
