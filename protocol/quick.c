/* The twin of quick.py, which says what the functions are for.
 *
 * Rules: every length is compared with what is there before a byte is touched; no state but the
 * exception type. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define MAGIC_100 0x8620EC20u
#define HEADER 16
#define FIELDS 24
#define FRAME (HEADER + FIELDS)
#define DATA 0x00
#define RS_DATA_REPLY 0x02
#define MAX_DATA (1u << 20)
#define MAX_TRIM (128u << 20)
#define MAX_SECTORS (UINT64_C(1) << 51)

struct frame {
    uint32_t magic;
    uint16_t volume, command;
    uint32_t length, pad;
    uint64_t sector, block_id;
    uint32_t third, fourth;
} __attribute__((packed));

_Static_assert(sizeof(struct frame) == FRAME, "the layout of a frame");

static PyObject *struct_error;

static int has_arguments(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return 0;
}

/* An argument as a number of at most `most`; -1 and an exception if it is none. */
static int take(PyObject *argument, uint64_t most, uint64_t *number)
{
    unsigned long long found = PyLong_AsUnsignedLongLong(argument);

    if (found == (unsigned long long)-1 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
    } else if (found <= most) {
        *number = found;
        return 0;
    }
    PyErr_SetString(struct_error, "a number does not fit its field");
    return -1;
}

static PyObject *block(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    if (!has_arguments(count, 3))
        return NULL;
    if (!PyBytes_Check(arguments[0])) {
        PyErr_SetString(PyExc_TypeError, "expected bytes");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(arguments[1]);
    if (at == -1 && PyErr_Occurred())
        return NULL;
    unsigned long long commands = PyLong_AsUnsignedLongLong(arguments[2]);
    if (commands == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t here = PyBytes_GET_SIZE(arguments[0]);
    if (at < 0 || at > here || here - at < FRAME)
        Py_RETURN_NONE;
    here -= at;

    const char *start = PyBytes_AS_STRING(arguments[0]) + at;
    struct frame frame;
    memcpy(&frame, start, sizeof frame);
    unsigned command = be16toh(frame.command);
    uint32_t length = be32toh(frame.length);
    uint64_t sector = be64toh(frame.sector);
    if (be32toh(frame.magic) != MAGIC_100 || frame.pad || command > 63 || !(commands >> command & 1))
        Py_RETURN_NONE;
    int with_data = command == DATA || command == RS_DATA_REPLY;
    uint32_t size;
    if (length == FIELDS) {
        size = be32toh(frame.third);
        if (with_data)
            Py_RETURN_NONE;
    } else {
        if (!with_data || length < FIELDS || length - FIELDS > MAX_DATA)
            Py_RETURN_NONE;
        size = length - FIELDS;
    }
    if (size & 511 || size > MAX_TRIM || sector > MAX_SECTORS - (size >> 9))
        Py_RETURN_NONE;
    if (here < (Py_ssize_t)HEADER + length)
        return PyLong_FromLong((long)HEADER + length);

    PyObject *found = PyTuple_New(7);
    if (found == NULL)
        return NULL;
    PyTuple_SET_ITEM(found, 0, PyLong_FromLong(command));
    PyTuple_SET_ITEM(found, 1, PyLong_FromLong(be16toh(frame.volume)));
    PyTuple_SET_ITEM(found, 2, PyLong_FromUnsignedLongLong(sector));
    PyTuple_SET_ITEM(found, 3, PyLong_FromUnsignedLongLong(be64toh(frame.block_id)));
    PyTuple_SET_ITEM(found, 4, PyLong_FromUnsignedLong(be32toh(frame.third)));
    PyTuple_SET_ITEM(found, 5, PyLong_FromUnsignedLong(be32toh(frame.fourth)));
    PyTuple_SET_ITEM(found, 6, PyBytes_FromStringAndSize(start + FRAME, length - FIELDS));
    for (int item = 0; item < 7; item++) {
        if (PyTuple_GET_ITEM(found, item) == NULL) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

/* A frame with `more` bytes of room behind it. */
static PyObject *framed(uint64_t volume, uint64_t command, uint64_t sector, uint64_t block_id,
                        uint64_t third, uint64_t fourth, Py_ssize_t more)
{
    PyObject *made = PyBytes_FromStringAndSize(NULL, FRAME + more);
    if (made == NULL)
        return NULL;
    struct frame frame = {
        .magic = htobe32(MAGIC_100),
        .volume = htobe16(volume),
        .command = htobe16(command),
        .length = htobe32(FIELDS + more),
        .sector = htobe64(sector),
        .block_id = htobe64(block_id),
        .third = htobe32(third),
        .fourth = htobe32(fourth),
    };
    memcpy(PyBytes_AS_STRING(made), &frame, sizeof frame);
    return made;
}

static PyObject *data_packet(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t volume, sector, block_id, seq, flags;

    if (!has_arguments(count, 6))
        return NULL;
    PyObject *data = arguments[5];
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "expected bytes");
        return NULL;
    }
    if (take(arguments[0], UINT16_MAX, &volume) || take(arguments[1], UINT64_MAX, &sector) ||
        take(arguments[2], UINT64_MAX, &block_id) || take(arguments[3], UINT32_MAX, &seq) ||
        take(arguments[4], UINT32_MAX, &flags))
        return NULL;
    Py_ssize_t length = PyBytes_GET_SIZE(data);
    if (length > (Py_ssize_t)(UINT32_MAX - FIELDS)) {
        PyErr_SetString(struct_error, "a number does not fit its field");
        return NULL;
    }
    PyObject *made = framed(volume, DATA, sector, block_id, seq, flags, length);
    if (made != NULL)
        memcpy(PyBytes_AS_STRING(made) + FRAME, PyBytes_AS_STRING(data), length);
    return made;
}

static PyObject *block_ack(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    uint64_t volume, command, sector, block_id, size, seq;

    if (!has_arguments(count, 6))
        return NULL;
    if (take(arguments[0], UINT16_MAX, &volume) || take(arguments[1], UINT16_MAX, &command) ||
        take(arguments[2], UINT64_MAX, &sector) || take(arguments[3], UINT64_MAX, &block_id) ||
        take(arguments[4], UINT32_MAX, &size) || take(arguments[5], UINT32_MAX, &seq))
        return NULL;
    return framed(volume, command, sector, block_id, size, seq, 0);
}

static PyMethodDef functions[] = {
    {"block", (PyCFunction)(void (*)(void))block, METH_FASTCALL, NULL},
    {"data_packet", (PyCFunction)(void (*)(void))data_packet, METH_FASTCALL, NULL},
    {"block_ack", (PyCFunction)(void (*)(void))block_ack, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "protocol.quick",
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
    if (module == NULL || struct_error == NULL ||
        PyModule_AddObject(module, "MAGIC_100", PyLong_FromUnsignedLong(MAGIC_100)) ||
        PyModule_AddIntConstant(module, "FRAME_SIZE", FRAME)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
