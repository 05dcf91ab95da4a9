/* A CUDA driver for machines without a GPU, for test_driver.py: device memory is the host's, and a launch computes
   nothing. What a real driver would refuse is refused, or reported as a line on stderr that begins with "driver:".
   Functions are as in cuda.h; handles are small numbers. */
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
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, NOT_FOUND = 500, CAPTURING = 900 };
enum { PINNED = 1, MAX_ALLOCATIONS = 1 << 20, MULTIPROCESSORS = 132, MAX_GRID_Y = 65535, MAX_THREADS = 1024 };

static const size_t MEMORY = (size_t)1 << 34;
static struct { Address first; size_t size; int live, pinned; } allocations[MAX_ALLOCATIONS];
static int n_allocations;
static size_t used;
static Handle capturing; /* the stream, if any */
static long launches, captured;
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
    case 1: *value = MAX_THREADS; break;
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
Result cuCtxSetCurrent(Handle context) { return contexts[n_contexts ? n_contexts - 1 : n_contexts++] = context, SUCCESS; }
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
    void *memory = aligned_alloc(512, (size + 511) / 512 * 512);
    memset(memory, 0xff, size); /* NaN */
    allocations[n_allocations].first = *address = (Address)memory;
    allocations[n_allocations].size = size;
    allocations[n_allocations].pinned = pinned;
    allocations[n_allocations++].live = 1;
    used += size;
    return SUCCESS;
}

/* Memory is not used again, so that whatever is wrong about an address shows. */
static Result release(Address address, int pinned)
{
    for (int i = n_allocations - 1; i >= 0; i--)
        if (allocations[i].first == address && allocations[i].live && allocations[i].pinned == pinned) {
            allocations[i].live = 0;
            used -= allocations[i].size;
            return SUCCESS;
        }
    report("what is freed is not there");
    return INVALID_VALUE;
}

static Result check(const char *name, Address address, size_t size)
{
    for (int i = n_allocations - 1; i >= 0; i--)
        if (address >= allocations[i].first && address < allocations[i].first + allocations[i].size) {
            if (allocations[i].live && address + size <= allocations[i].first + allocations[i].size)
                return SUCCESS;
            report("%s of %zu bytes %s", name, size, allocations[i].live ? "past the end" : "after they were freed");
            return INVALID_VALUE;
        }
    report("%s of what is not in the device's memory", name);
    return INVALID_VALUE;
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

static Result copy(const char *name, void *target, const void *source, size_t size, int to_device, int from_device)
{
    IN_CONTEXT("a copy")
    NOT_CAPTURED("a copy")
    if ((to_device && check(name, (Address)target, size)) || (from_device && check(name, (Address)source, size)))
        return INVALID_VALUE;
    memmove(target, source, size);
    return SUCCESS;
}
Result cuMemcpyHtoD(void *target, void *source, size_t size) { return copy("a copy", target, source, size, 1, 0); }
Result cuMemcpyDtoH(void *target, void *source, size_t size) { return copy("a copy", target, source, size, 0, 1); }
Result cuMemcpyDtoD(void *target, void *source, size_t size) { return copy("a copy", target, source, size, 1, 1); }
Result cuMemcpyHtoDAsync(void *target, void *source, size_t size, Handle stream) { return cuMemcpyHtoD(target, source, size); }
Result cuMemcpyDtoHAsync(void *target, void *source, size_t size, Handle stream) { return cuMemcpyDtoH(target, source, size); }
Result cuMemcpyDtoDAsync(void *target, void *source, size_t size, Handle stream) { return cuMemcpyDtoD(target, source, size); }
Result cuMemsetD8(void *target, unsigned char value, size_t size)
{
    IN_CONTEXT("cuMemsetD8")
    NOT_CAPTURED("cuMemsetD8")
    if (check("cuMemsetD8", (Address)target, size))
        return INVALID_VALUE;
    return memset(target, value, size), SUCCESS;
}
Result cuMemsetD8Async(void *target, unsigned char value, size_t size, Handle stream) { return cuMemsetD8(target, value, size); }
Result cuPointerGetAttribute(void *value, int attribute, Address address) { return *(Address *)value = address, SUCCESS; }
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

Result cuStreamCreate(Handle *stream, unsigned flags)
{
    IN_CONTEXT("cuStreamCreate")
    return new_handle(stream);
}
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
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
    return capturing = stream, captured = 0, SUCCESS;
}
Result cuStreamEndCapture(Handle stream, Handle *graph)
{
    if (stream != capturing || captured == 0)
        report("cuStreamEndCapture of %ld launches", captured);
    capturing = 0;
    return new_handle(graph);
}
Result cuGraphInstantiate(Handle *executable, Handle graph, unsigned long long flags) { return new_handle(executable); }
Result cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long flags) { return new_handle(executable); }
Result cuGraphDestroy(Handle graph) { return SUCCESS; }
Result cuGraphExecDestroy(Handle executable) { return SUCCESS; }
Result cuGraphLaunch(Handle executable, Handle stream)
{
    IN_CONTEXT("cuGraphLaunch")
    NOT_CAPTURED("cuGraphLaunch")
    return launches++, SUCCESS;
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
    return new_handle(library);
}
Result cuLibraryUnload(Handle library) { return SUCCESS; }
Result cuLibraryGetKernel(Handle *kernel, Handle library, const char *name) { return *kernel = strdup(name), SUCCESS; }
Result cuLibraryGetModule(Handle *module, Handle library) { return *module = library, SUCCESS; }
Result cuKernelGetFunction(Handle *function, Handle kernel) { return *function = kernel, SUCCESS; }
Result cuKernelGetLibrary(Handle *library, Handle kernel) { return new_handle(library); }
Result cuKernelGetAttribute(int *value, int attribute, Handle kernel, int device) { return *value = attribute ? 32 : 256, SUCCESS; }
Result cuFuncGetAttribute(int *value, int attribute, Handle function) { return *value = attribute ? 32 : 256, SUCCESS; }

struct Launch { unsigned grid[3], block[3], shared; Handle stream, attributes; unsigned n_attributes; };

Result cuLaunchKernelEx(struct Launch *launch, Handle kernel, void **parameters, void **extra)
{
    IN_CONTEXT("a launch")
    const unsigned *grid = launch->grid, *block = launch->block;
    launches++, captured++;
    if (!launch->stream || (capturing && launch->stream != capturing))
        report("%s is launched on another stream", (char *)kernel);
    if (!grid[0] || !grid[1] || grid[1] > MAX_GRID_Y || grid[2] != 1 || !block[0] || block[0] > MAX_THREADS) {
        report("%s is launched with a grid of %u x %u blocks of %u", (char *)kernel, grid[0], grid[1], block[0]);
        return INVALID_VALUE;
    }
    return SUCCESS;
}
Result cuLaunchKernel(Handle kernel, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned by, unsigned bz,
                      unsigned shared, Handle stream, void **parameters, void **extra)
{
    struct Launch launch = {{x, y, z}, {threads, by, bz}, shared, stream, 0, 0};
    return cuLaunchKernelEx(&launch, kernel, parameters, extra);
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
