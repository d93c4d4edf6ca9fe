/* The twin of syscalls.py, which says what the functions are for.
 *
 * Rules: other threads run during every call; a buffer is held as long as the kernel may touch it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static int has_arguments(Py_ssize_t count, Py_ssize_t wanted)
{
    if (count == wanted)
        return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, count);
    return 0;
}

/* A descriptor as an argument; -1 and an exception if it is none. */
static int descriptor(PyObject *argument)
{
    long fd = PyLong_AsLong(argument);

    if (fd == -1 && PyErr_Occurred())
        return -1;
    if (fd < 0 || fd > INT_MAX) {
        PyErr_SetString(PyExc_ValueError, "not a file descriptor");
        return -1;
    }
    return (int)fd;
}

static PyObject *transfer(PyObject *const *arguments, Py_ssize_t count, int receives)
{
    Py_buffer view;
    ssize_t moved;

    if (!has_arguments(count, 2))
        return NULL;
    int fd = descriptor(arguments[0]), flags = receives ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (fd < 0 || PyObject_GetBuffer(arguments[1], &view, flags) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    do {
        moved = receives ? recv(fd, view.buf, view.len, 0)
                         : send(fd, view.buf, view.len, MSG_NOSIGNAL);
    } while (moved < 0 && errno == EINTR);
    if (moved < 0)
        moved = -errno;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromSsize_t(moved);
}

static PyObject *receive_(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    return transfer(arguments, count, 1);
}

static PyObject *send_(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    return transfer(arguments, count, 0);
}

struct write {
    off_t offset;
    Py_buffer data;
    int result;
};

/* All of it, or an errno. */
static int write_whole(int fd, const struct write *write)
{
    const char *from = write->data.buf;
    Py_ssize_t left = write->data.len;
    off_t offset = write->offset;

    while (left) {
        ssize_t written = pwrite(fd, from, left, offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? errno : EIO;
        from += written;
        offset += written;
        left -= written;
    }
    return 0;
}

static int take_write(PyObject *item, struct write *write)
{
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) < 2) {
        PyErr_SetString(PyExc_TypeError, "expected tuples of offset and data");
        return -1;
    }
    long long offset = PyLong_AsLongLong(PyTuple_GET_ITEM(item, 0));
    if (offset == -1 && PyErr_Occurred())
        return -1;
    write->offset = offset;
    return PyObject_GetBuffer(PyTuple_GET_ITEM(item, 1), &write->data, PyBUF_SIMPLE);
}

static PyObject *write_burst(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    PyObject *results = NULL;
    Py_ssize_t taken = 0, made = 0;
    double started, seconds = 0;

    if (!has_arguments(count, 3))
        return NULL;
    int fd = descriptor(arguments[0]);
    double most = PyFloat_AsDouble(arguments[2]);
    if (fd < 0 || (most == -1 && PyErr_Occurred()))
        return NULL;
    if (!PyList_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "expected a list");
        return NULL;
    }
    Py_ssize_t all = PyList_GET_SIZE(arguments[1]);
    struct write *writes = PyMem_Calloc(all ? all : 1, sizeof *writes);
    if (writes == NULL)
        return PyErr_NoMemory();
    /* To take a buffer may run code that changes the list. */
    while (taken < all && taken < PyList_GET_SIZE(arguments[1])) {
        if (take_write(PyList_GET_ITEM(arguments[1], taken), &writes[taken]) < 0)
            goto end;
        taken++;
    }
    Py_BEGIN_ALLOW_THREADS
    started = now();
    while (made < taken && seconds <= most) {
        writes[made].result = write_whole(fd, &writes[made]);
        made++;
        seconds = now() - started;
    }
    Py_END_ALLOW_THREADS
    results = PyList_New(made);
    for (Py_ssize_t item = 0; results != NULL && item < made; item++) {
        PyObject *result = PyLong_FromLong(writes[item].result);
        if (result == NULL)
            Py_CLEAR(results);
        else
            PyList_SET_ITEM(results, item, result);
    }
end:
    while (taken)
        PyBuffer_Release(&writes[--taken].data);
    PyMem_Free(writes);
    return results == NULL ? NULL : Py_BuildValue("(Nd)", results, seconds);
}

static PyMethodDef functions[] = {
    {"receive", (PyCFunction)(void (*)(void))receive_, METH_FASTCALL, NULL},
    {"send", (PyCFunction)(void (*)(void))send_, METH_FASTCALL, NULL},
    {"write_burst", (PyCFunction)(void (*)(void))write_burst, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "replicator.runtime.syscalls",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit_syscalls(void)
{
    return PyModule_Create(&definition);
}
