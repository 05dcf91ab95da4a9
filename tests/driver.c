/* A CUDA driver for machines without a GPU, for test_driver.py: device memory is the host's, and whatever is asked for
   is done at once, launches by ptx.c. What a real driver would refuse is refused, or reported as a line on stderr that
   begins with "driver:". Functions are as in cuda.h. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Address;
typedef void *Handle;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700,
       CAPTURING = 900 };
enum { PINNED = 1, MAX_ALLOCATIONS = 1 << 20, MULTIPROCESSORS = 132, MAX_GRID_Y = 65535 };

static const size_t MEMORY = 1 << 28;
static struct { Address first; size_t size; int live, pinned; } allocations[MAX_ALLOCATIONS];
static int n_allocations;
static size_t used;
static Handle capturing; /* the stream, if any */
static long launches;
static uintptr_t last_handle = 64;
static __thread Handle contexts[64];
static __thread int n_contexts;

static void report(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("driver: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

#include "ptx.c"

static Result new_handle(Handle *handle)
{
    *handle = (Handle)(last_handle += 64);
    return SUCCESS;
}

#define IN_CONTEXT(name)                                  \
    if (n_contexts == 0 || !contexts[n_contexts - 1]) {   \
        report(name " without a context");                \
        return INVALID_CONTEXT;                           \
    }
/* What must not happen while launches are captured. */
#define NOT_CAPTURED(name)                                \
    if (capturing) {                                      \
        report(name " during a capture");                 \
        return CAPTURING;                                 \
    }

/* ---- devices and contexts ------------------------------------------------------------------- */

Result cuInit(unsigned flags) { return SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int number) { return *device = number, SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "No GPU"), SUCCESS; }
Result cuDeviceGetUuid(void *uuid, int device) { return memset(uuid, 7, 16), SUCCESS; }
Result cuDeviceTotalMem(size_t *size, int device) { return *size = MEMORY, SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    switch (attribute) {
    case 1: *value = MOST_THREADS; break;
    case 8: *value = 49152; break;            /* bytes of shared memory */
    case 10: *value = 32; break;              /* threads of a warp */
    case 16: *value = MULTIPROCESSORS; break;
    case 75: *value = 9; break;               /* compute capability 9.0 */
    case 76: *value = 0; break;
    default: *value = 1;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int device) { return *context = (Handle)8, SUCCESS; }
Result cuDevicePrimaryCtxRelease(int device) { return SUCCESS; }
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { return *context = n_contexts ? contexts[n_contexts - 1] : 0, SUCCESS; }
Result cuCtxSetCurrent(Handle context)
{
    return contexts[n_contexts ? n_contexts - 1 : n_contexts++] = context, SUCCESS;
}
Result cuCtxPushCurrent(Handle context) { return contexts[n_contexts++] = context, SUCCESS; }
Result cuCtxPopCurrent(Handle *context)
{
    IN_CONTEXT("cuCtxPopCurrent")
    *context = contexts[--n_contexts];
    return SUCCESS;
}
Result cuCtxGetDevice(int *device)
{
    IN_CONTEXT("cuCtxGetDevice")
    return *device = 0, SUCCESS;
}
Result cuCtxGetId(Handle context, unsigned long long *id) { return *id = 1, SUCCESS; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }
Result cuCtxSynchronize(void)
{
    IN_CONTEXT("cuCtxSynchronize")
    NOT_CAPTURED("cuCtxSynchronize")
    return SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------- */

static Result allocate(Address *address, size_t size, int pinned)
{
    if (size == 0 || n_allocations == MAX_ALLOCATIONS)
        return INVALID_VALUE;
    if (used + size > MEMORY)
        return OUT_OF_MEMORY;
    allocations[n_allocations].first = *address = pinned ? (Address)malloc(size) : place(size, ALIGNMENT);
    allocations[n_allocations].size = size;
    allocations[n_allocations].pinned = pinned;
    allocations[n_allocations++].live = 1;
    used += size;
    return SUCCESS;
}

static Result release(Address address, int pinned)
{
    for (int i = n_allocations - 1; i >= 0; i--)
        if (allocations[i].first == address && allocations[i].live && allocations[i].pinned == pinned) {
            allocations[i].live = 0;
            used -= allocations[i].size;
            if (!pinned)
                mark(address, allocations[i].size, MISSING);
            return SUCCESS;
        }
    report("what is freed is not there");
    return INVALID_VALUE;
}

/* What is in the device's memory is there, and what is read has been written. */
static Result check(const char *name, Address address, size_t size, int reads)
{
    const struct Word *word = find(address, size);
    if (!word) {
        report("%s of %zu bytes that are not in one array of the device's", name, size);
        return INVALID_VALUE;
    }
    for (size_t k = 0; reads && k < size / WORD; k++)
        if (word[k].written.time == UNWRITTEN) {
            report("%s of %zu bytes, of which nobody has written number %zu", name, size, k * WORD);
            break;
        }
    return SUCCESS;
}

Result cuMemGetInfo(size_t *free, size_t *total)
{
    IN_CONTEXT("cuMemGetInfo")
    return *free = MEMORY - used, *total = MEMORY, SUCCESS;
}
Result cuMemAlloc(Address *address, size_t size)
{
    IN_CONTEXT("cuMemAlloc")
    NOT_CAPTURED("cuMemAlloc")
    return allocate(address, size, 0);
}
Result cuMemFree(Address address)
{
    IN_CONTEXT("cuMemFree")
    return release(address, 0);
}
Result cuMemHostAlloc(void **address, size_t size, unsigned flags)
{
    IN_CONTEXT("cuMemHostAlloc")
    return allocate((Address *)address, size, PINNED);
}
Result cuMemFreeHost(void *address)
{
    IN_CONTEXT("cuMemFreeHost")
    return release((Address)address, PINNED);
}

static Result copy(void *target, const void *source, size_t size, int to_device, int from_device)
{
    IN_CONTEXT("a copy")
    NOT_CAPTURED("a copy")
    if ((to_device && check("a copy", (Address)target, size, 0)) ||
        (from_device && check("a copy", (Address)source, size, 1)))
        return INVALID_VALUE;
    memmove(target, source, size);
    if (to_device)
        mark((Address)target, size, now);
    return SUCCESS;
}
Result cuMemcpyHtoD(void *target, void *source, size_t size) { return copy(target, source, size, 1, 0); }
Result cuMemcpyDtoH(void *target, void *source, size_t size) { return copy(target, source, size, 0, 1); }
Result cuMemcpyDtoD(void *target, void *source, size_t size) { return copy(target, source, size, 1, 1); }
Result cuMemcpyHtoDAsync(void *target, void *source, size_t size, Handle stream)
{
    return cuMemcpyHtoD(target, source, size);
}
Result cuMemcpyDtoHAsync(void *target, void *source, size_t size, Handle stream)
{
    return cuMemcpyDtoH(target, source, size);
}
Result cuMemcpyDtoDAsync(void *target, void *source, size_t size, Handle stream)
{
    return cuMemcpyDtoD(target, source, size);
}
Result cuMemsetD8(void *target, unsigned char value, size_t size)
{
    IN_CONTEXT("cuMemsetD8")
    NOT_CAPTURED("cuMemsetD8")
    if (check("cuMemsetD8", (Address)target, size, 0))
        return INVALID_VALUE;
    mark((Address)target, size, now);
    return memset(target, value, size), SUCCESS;
}
Result cuMemsetD8Async(void *target, unsigned char value, size_t size, Handle stream)
{
    return cuMemsetD8(target, value, size);
}
Result cuPointerGetAttribute(void *value, int attribute, Address address)
{
    return *(Address *)value = address, SUCCESS;
}
Result cuPointerGetAttributes(unsigned count, int *attributes, void **values, Address address)
{
    for (unsigned k = 0; k < count; k++)
        switch (attributes[k]) {
        case 2: *(int *)values[k] = 2; break; /* memory of a device */
        case 3: *(Address *)values[k] = address; break;
        default: *(int *)values[k] = 0;
        }
    return SUCCESS;
}

/* ---- streams, events and graphs ------------------------------------------------------------- */

static struct Graph { int n; struct Launch *launches; } *graph; /* that is captured */

Result cuStreamCreate(Handle *stream, unsigned flags)
{
    IN_CONTEXT("cuStreamCreate")
    return new_handle(stream);
}
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority)
{
    return cuStreamCreate(stream, flags);
}
Result cuStreamDestroy(Handle stream)
{
    if (stream == capturing)
        report("cuStreamDestroy during its capture");
    return SUCCESS;
}
Result cuStreamSynchronize(Handle stream)
{
    IN_CONTEXT("cuStreamSynchronize")
    NOT_CAPTURED("cuStreamSynchronize")
    return SUCCESS;
}
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags)
{
    NOT_CAPTURED("cuStreamWaitEvent")
    return SUCCESS;
}
Result cuStreamGetFlags(Handle stream, unsigned *flags) { return *flags = 0, SUCCESS; }
Result cuStreamGetPriority(Handle stream, int *priority) { return *priority = 0, SUCCESS; }
Result cuStreamGetCtx(Handle stream, Handle *context) { return *context = (Handle)8, SUCCESS; }
Result cuStreamBeginCapture(Handle stream, int mode)
{
    IN_CONTEXT("cuStreamBeginCapture")
    NOT_CAPTURED("cuStreamBeginCapture")
    graph = calloc(1, sizeof *graph);
    return capturing = stream, SUCCESS;
}
Result cuStreamEndCapture(Handle stream, Handle *captured)
{
    if (stream != capturing || graph->n == 0)
        report("cuStreamEndCapture of %d launches", graph->n);
    capturing = 0;
    return *captured = graph, SUCCESS;
}
Result cuGraphInstantiate(Handle *executable, Handle captured, unsigned long long flags)
{
    return *executable = captured, SUCCESS;
}
Result cuGraphInstantiateWithFlags(Handle *executable, Handle captured, unsigned long long flags)
{
    return *executable = captured, SUCCESS;
}
Result cuGraphDestroy(Handle captured) { return SUCCESS; }
Result cuGraphExecDestroy(Handle executable) { return SUCCESS; }
Result cuGraphLaunch(struct Graph *executable, Handle stream)
{
    IN_CONTEXT("cuGraphLaunch")
    NOT_CAPTURED("cuGraphLaunch")
    Result result = SUCCESS;
    launches++;
    for (int k = 0; k < executable->n && result == SUCCESS; k++)
        result = run_launch(&executable->launches[k]);
    return result;
}
Result cuEventCreate(Handle *event, unsigned flags)
{
    IN_CONTEXT("cuEventCreate")
    return new_handle(event);
}
Result cuEventDestroy(Handle event) { return SUCCESS; }
Result cuEventRecord(Handle event, Handle stream)
{
    IN_CONTEXT("cuEventRecord")
    NOT_CAPTURED("cuEventRecord")
    return SUCCESS;
}
Result cuEventSynchronize(Handle event)
{
    NOT_CAPTURED("cuEventSynchronize")
    return SUCCESS;
}
Result cuEventQuery(Handle event) { return SUCCESS; }
Result cuEventElapsedTime(float *milliseconds, Handle begin, Handle end) { return *milliseconds = 1, SUCCESS; }

/* ---- kernels -------------------------------------------------------------------------------- */

Result cuLibraryLoadData(Handle *library, const void *code, void *a, void *b, unsigned n, void *c, void *d, unsigned m)
{
    NOT_CAPTURED("cuLibraryLoadData")
    return *library = load(code), SUCCESS;
}
Result cuLibraryUnload(Handle library) { return SUCCESS; }
Result cuLibraryGetKernel(Handle *kernel, struct Program *library, const char *name)
{
    library->name = strdup(name);
    return *kernel = library, SUCCESS;
}
Result cuLibraryGetModule(Handle *module, Handle library) { return *module = library, SUCCESS; }
Result cuKernelGetFunction(Handle *function, Handle kernel) { return *function = kernel, SUCCESS; }
Result cuKernelGetLibrary(Handle *library, Handle kernel) { return *library = kernel, SUCCESS; }
Result cuKernelGetAttribute(int *value, int attribute, struct Program *kernel, int device)
{
    return *value = attribute ? 32 : kernel->head.n_threads, SUCCESS;
}
Result cuFuncGetAttribute(int *value, int attribute, Handle function)
{
    return cuKernelGetAttribute(value, attribute, function, 0);
}

struct Configuration { unsigned grid[3], block[3], shared; Handle stream, attributes; unsigned n_attributes; };

Result cuLaunchKernelEx(struct Configuration *configuration, struct Program *kernel, void **parameters, void **extra)
{
    IN_CONTEXT("a launch")
    const unsigned *grid = configuration->grid, *block = configuration->block;
    launches++;
    if (!configuration->stream || (capturing && configuration->stream != capturing))
        report("%s is launched on another stream", kernel->name);
    int is_grid = grid[0] && grid[1] && grid[1] <= MAX_GRID_Y && grid[2] == 1;
    if (!is_grid || !block[0] || block[0] > kernel->head.n_threads) {
        report("%s is launched with a grid of %u x %u blocks of %u", kernel->name, grid[0], grid[1], block[0]);
        return INVALID_VALUE;
    }
    struct Launch launch = {kernel, {grid[0], grid[1]}, block[0], calloc(kernel->head.n_parameters + 1, sizeof(u64))};
    for (u64 k = 0; k < kernel->head.n_parameters; k++)
        memcpy(&launch.arguments[k], parameters[k], kernel->parameters[k].size);
    if (capturing) {
        graph->launches = realloc(graph->launches, ++graph->n * sizeof launch);
        graph->launches[graph->n - 1] = launch;
        return SUCCESS;
    }
    Result result = run_launch(&launch);
    free(launch.arguments);
    return result;
}
Result cuLaunchKernel(Handle kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned by, unsigned bz,
                      unsigned shared, Handle stream, void **parameters, void **extra)
{
    struct Configuration configuration = {{x, y, z}, {threads, by, bz}, shared, stream, 0, 0};
    return cuLaunchKernelEx(&configuration, kernel, parameters, extra);
}
long driver_launches(void) { return launches; }
long driver_memory(void) { return used; }

Result cuGetErrorName(int error, const char **name)
{
    return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", SUCCESS;
}
Result cuGetErrorString(int error, const char **text) { return *text = "an error", SUCCESS; }
Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status)
{
    static void *library;
    Dl_info here;
    if (!library && dladdr((void *)cuInit, &here))
        library = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    *function = dlsym(library, name);
    if (status)
        *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuGetProcAddress(const char *name, void **function, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, function, version, flags, 0);
}
