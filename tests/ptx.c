/* The GPU of driver.c: memory, and kernels, run thread after thread, each up to the next barrier. What a GPU leaves to
   chance is reported: reads of what nobody has written, and accesses that no barrier keeps apart. A kernel is what
   ptx.py makes of its PTX, and operations.h what it makes of its tables. */
#include <sys/mman.h>
#include <tgmath.h>
#include "operations.h"

typedef uint8_t pred;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;

/* ---- memory --------------------------------------------------------------------------------- */

enum { WORD = 4, ALIGNMENT = 512, GAP = 1 << 16 };
enum { HOST = -1, MANY = -2 };           /* instead of a thread */
enum { MISSING, UNWRITTEN, FIRST_TIME }; /* instead of a time, but for the last */
struct Access { u32 time; s32 thread; };
struct Word { struct Access written, read; };

static const size_t RESERVED = (size_t)1 << 36;
static char *memory;
static struct Word *words; /* of the memory */
/* Time goes on from barrier to barrier, and blocks run one after the other. */
static u32 now = FIRST_TIME, launch_began, block_began;

static void *reserve(size_t size)
{
    return mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/* Its words, if all of them are there. */
static struct Word *find(Address address, size_t size)
{
    if (address - (Address)memory >= RESERVED - size)
        return 0;
    struct Word *word = words + (address - (Address)memory) / WORD;
    for (size_t k = 0; k < (size + WORD - 1) / WORD; k++)
        if (word[k].written.time == MISSING)
            return 0;
    return word;
}

static void mark(Address address, size_t size, u32 time)
{
    struct Word *word = words + (address - (Address)memory) / WORD;
    for (size_t k = 0; k < (size + WORD - 1) / WORD; k++)
        word[k] = (struct Word){{time, HOST}, {MISSING, HOST}};
}

/* New memory, aligned to no more than it has to be. It is not used again, so that whatever is wrong about an address
   shows. */
static Address place(size_t size, size_t alignment)
{
    static size_t end;
    if (!memory)
        memory = reserve(RESERVED), words = reserve(RESERVED / WORD * sizeof *words);
    size_t begin = (end + GAP) / ALIGNMENT * ALIGNMENT + alignment % ALIGNMENT;
    end = begin + size;
    mark((Address)memory + begin, size, UNWRITTEN);
    return (Address)memory + begin;
}

/* ---- programs ------------------------------------------------------------------------------- */

union Register { pred pred; u16 u16; u32 u32; u64 u64; s16 s16; s32 s32; s64 s64; f32 f32; f64 f64; };
enum { TID, LANEID, NTID, CTAID_X, CTAID_Y, NCTAID_X, NCTAID_Y };
struct Instruction { int operation, line, predicate, negated, is_reported, operands[15]; };
struct Parameter { u64 number, size; };             /* of its register */
struct Array { u64 number, size, alignment; };      /* in shared memory */
struct Head { u64 entry, n_threads, n_registers, n_parameters, n_arrays, n_instructions; };
static struct Program {
    const char *name;
    struct Head head;
    struct Parameter *parameters;
    struct Array *arrays;
    union Register *registers; /* as a thread finds them */
    struct Instruction *instructions;
} *program; /* that is run */

static void *take(const char **code, size_t size)
{
    void *copy = memcpy(malloc(size), *code, size);
    *code += size;
    return copy;
}

static struct Program *load(const char *code)
{
    struct Program *loaded = malloc(sizeof *loaded);
    struct Head *head = memcpy(&loaded->head, code, sizeof *head);
    code += sizeof *head;
    loaded->parameters = take(&code, head->n_parameters * sizeof *loaded->parameters);
    loaded->arrays = take(&code, head->n_arrays * sizeof *loaded->arrays);
    loaded->registers = take(&code, head->n_registers * sizeof *loaded->registers);
    loaded->instructions = take(&code, head->n_instructions * sizeof *loaded->instructions);
    for (u64 k = 0; k < head->n_arrays; k++)
        loaded->registers[loaded->arrays[k].number].u64 = place(loaded->arrays[k].size, loaded->arrays[k].alignment);
    return loaded;
}

/* ---- threads -------------------------------------------------------------------------------- */

enum { WARP = 32, MOST_THREADS = 1024 };
enum State { READY, AT_BARRIER, AT_PRODUCT, GONE, FAILED };
static struct Thread { union Register *registers; int number, next; enum State state; } threads[MOST_THREADS];
static unsigned block[2];

/* Once for each instruction. */
static void complain(const struct Thread *thread, const char *what)
{
    struct Instruction *instruction = program->instructions + thread->next - 1;
    if (!instruction->is_reported)
        report("thread %d of block (%u, %u) %s: line %d of the PTX of %.99s", thread->number, block[0], block[1], what,
               instruction->line, program->name);
    instruction->is_reported = 1;
}

/* Whether no barrier is between an access and what the thread does now, nor the end of a launch. */
static int clashes(struct Access access, const struct Thread *thread)
{
    if (access.time < launch_began)
        return 0;
    return access.time < block_began || (access.time == now && access.thread != thread->number);
}

enum Kind { READ, WRITE, UPDATE };

static void *at(const struct Thread *thread, Address address, size_t size, enum Kind kind)
{
    struct Word *word = address % size ? 0 : find(address, size);
    if (!word) {
        complain(thread, address % size ? "is at an address that is not aligned" : "is outside of all arrays");
        return 0;
    }
    for (size_t k = 0; k < (size + WORD - 1) / WORD; k++, word++) {
        if (kind != WRITE && word->written.time == UNWRITTEN)
            complain(thread, "reads what nobody has written");
        if (kind == UPDATE)
            continue;
        if (clashes(word->written, thread))
            complain(thread, "comes to what another one writes");
        if (kind == WRITE && clashes(word->read, thread))
            complain(thread, "writes what another one reads");
        struct Access mine = {now, thread->number};
        if (kind == WRITE)
            word->written = mine;
        else if (!clashes(word->read, thread))
            word->read = mine;
        else if (word->read.time == now)
            word->read.thread = MANY;
    }
    return (void *)address;
}

static u32 bits_of(f32 x) { return (union Register){.f32 = x}.u32; }
static f32 number(u32 bits) { return (union Register){.u32 = bits}.f32; }
static u32 to_bf16(f32 x) { return (bits_of(x) + 0x7fff + (bits_of(x) >> 16 & 1)) >> 16; }

#define IN(k, type) registers[operands[k]].type
#define OUT(k) registers[operands[k]]
#define COMPUTE(to, from, result)                                                             \
    {                                                                                         \
        from x = IN(1, from), y = IN(2, from), z = IN(3, from);                               \
        u32 n = IN(2, u32);                                                                   \
        pred p = IN(3, pred);                                                                 \
        OUT(0).to = result;                                                                   \
    }
#define ACCESS(type, n, kind)                                                                 \
    type *target = at(thread, IN(0, u64) + IN(1, u64), n * sizeof(type), kind);               \
    if (!target)                                                                              \
        return FAILED;
#define LOAD(to, type)                                                                        \
    {                                                                                         \
        ACCESS(type, operands[2], READ)                                                       \
        for (int k = 0; k < operands[2]; k++)                                                 \
            OUT(3 + k).to = target[k];                                                        \
    }
#define STORE(type)                                                                           \
    {                                                                                         \
        ACCESS(type, operands[2], WRITE)                                                      \
        for (int k = 0; k < operands[2]; k++)                                                 \
            target[k] = IN(3 + k, type);                                                      \
    }
#define ATOMIC(type, result)                                                                  \
    {                                                                                         \
        ACCESS(type, 1, UPDATE)                                                               \
        type x = *target, y = IN(4, type);                                                    \
        OUT(3).type = x;                                                                      \
        *target = result;                                                                     \
    }

/* Up to where it must wait for others. */
static enum State run(struct Thread *thread)
{
    union Register *registers = thread->registers;
    for (;;) {
        const struct Instruction *instruction = program->instructions + thread->next++;
        const int *operands = instruction->operands;
        if (registers[instruction->predicate].pred == instruction->negated)
            continue;
        switch (instruction->operation) {
        CASES
        case bra: thread->next = operands[0]; break;
        case jump: thread->next = IN(0, u64); break;
        case leave: return GONE;
        case barrier: return AT_BARRIER;
        case mma_tf32:
        case mma_bf16: return AT_PRODUCT;
        case pack: OUT(0).u64 = IN(1, u32) | (u64)IN(2, u32) << 32; break;
        case unpack: {
            u64 x = IN(2, u64);
            OUT(0).u64 = (u32)x, OUT(1).u64 = x >> 32;
            break;
        }
        case to_tf32: OUT(0).u32 = (bits_of(IN(1, f32)) + 0x1000) & 0xffffe000; break;
        case to_bf16x2: OUT(0).u32 = to_bf16(IN(1, f32)) << 16 | to_bf16(IN(2, f32)); break;
        }
    }
}

/* D = A B + C by a warp: m16n8k8 in tf32, or m16n8k16 in bf16, of which a word has two numbers. Which lane holds what
   is as the PTX ISA says. */
static void multiply(struct Thread *lanes, const struct Instruction *instruction)
{
    const int *d = instruction->operands, *a = d + 4, *b = d + 8, *c = d + 10;
    int numbers = instruction->operation == mma_bf16 ? 2 : 1;
    f32 A[16][16], B[16][8];
    for (int lane = 0; lane < WARP; lane++)
        for (int n = 0; n < numbers; n++) {
            int group = lane / 4, depth = lane % 4 * numbers + n;
            u32 mask = numbers == 1 ? 0xffffe000 : 0xffff0000, shift = 16 * (numbers - 1 - n);
            const union Register *registers = lanes[lane].registers;
            for (int k = 0; k < 4; k++)
                A[group + k % 2 * 8][depth + k / 2 * 4 * numbers] = number(registers[a[k]].u32 << shift & mask);
            for (int k = 0; k < 2; k++)
                B[depth + k * 4 * numbers][group] = number(registers[b[k]].u32 << shift & mask);
        }
    for (int lane = 0; lane < WARP; lane++) {
        union Register *registers = lanes[lane].registers;
        f32 results[4];
        for (int r = 0; r < 4; r++) {
            int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
            f64 sum = registers[c[r]].f32;
            for (int k = 0; k < 8 * numbers; k++)
                sum += (f64)A[row][k] * B[k][column];
            results[r] = sum;
        }
        for (int r = 0; r < 4; r++)
            registers[d[r]].f32 = results[r];
        lanes[lane].state = READY;
    }
}

static Result run_warp(struct Thread *lanes, int n_lanes)
{
    for (;;) {
        const struct Thread *first = 0;
        int together = 0;
        for (int lane = 0; lane < n_lanes; lane++) {
            if (lanes[lane].state == READY)
                lanes[lane].state = run(&lanes[lane]);
            if (lanes[lane].state == FAILED)
                return ILLEGAL_ADDRESS;
            if (lanes[lane].state == AT_PRODUCT) {
                first = first ? first : &lanes[lane];
                together += lanes[lane].next == first->next;
            }
        }
        if (!first)
            return SUCCESS;
        if (together < WARP) {
            complain(first, "multiplies without its warp");
            return ILLEGAL_ADDRESS;
        }
        multiply(lanes, program->instructions + first->next - 1);
    }
}

/* ---- launches ------------------------------------------------------------------------------- */

struct Launch { struct Program *program; unsigned grid[2], n_threads; u64 *arguments; };

static Result run_block(unsigned n_threads)
{
    for (;;) {
        for (unsigned t = 0; t < n_threads; t += WARP)
            if (run_warp(threads + t, n_threads - t < WARP ? n_threads - t : WARP))
                return ILLEGAL_ADDRESS;
        const struct Thread *first = 0;
        unsigned together = 0;
        for (struct Thread *thread = threads; thread < threads + n_threads; thread++)
            if (thread->state == AT_BARRIER) {
                first = first ? first : thread;
                together += thread->next == first->next;
                thread->state = READY;
            }
        if (!first)
            return SUCCESS;
        if (together < n_threads)
            complain(first, "waits at a barrier that not all come to");
        now++;
    }
}

static Result run_launch(const struct Launch *launch)
{
    program = launch->program;
    const struct Head *head = &program->head;
    union Register *image = program->registers, *all = malloc(launch->n_threads * head->n_registers * sizeof *all);
    for (u64 k = 0; k < head->n_parameters; k++)
        image[program->parameters[k].number].u64 = launch->arguments[k];
    image[NTID].u64 = launch->n_threads, image[NCTAID_X].u64 = launch->grid[0], image[NCTAID_Y].u64 = launch->grid[1];
    Result result = SUCCESS;
    launch_began = now + 1;
    for (u64 k = 0; k < (u64)launch->grid[0] * launch->grid[1] && result == SUCCESS; k++) {
        block_began = ++now;
        image[CTAID_X].u64 = block[0] = k % launch->grid[0], image[CTAID_Y].u64 = block[1] = k / launch->grid[0];
        for (u64 array = 0; array < head->n_arrays; array++)
            mark(image[program->arrays[array].number].u64, program->arrays[array].size, UNWRITTEN);
        for (unsigned t = 0; t < launch->n_threads; t++) {
            union Register *registers = memcpy(all + t * head->n_registers, image, head->n_registers * sizeof *all);
            registers[TID].u64 = t, registers[LANEID].u64 = t % WARP;
            threads[t] = (struct Thread){registers, t, head->entry, READY};
        }
        result = run_block(launch->n_threads);
    }
    free(all);
    return result;
}
