// The few calls of CUDA's driver that copies of experts need, for hosts without
// a GPU: streams that do nothing by themselves. Whoever waits for an event has
// only that done which must be done before it, and everything else stays
// undone, so what is not ordered does not happen.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kCopy, kRecord, kFollow, kMostOps = 4096, kMostStreams = 16 };

typedef struct Event {
  int records; // asked for
  int reached; // done
} Event;

typedef struct {
  int kind;
  uintptr_t to, from;
  size_t size;
  Event *event;
  int record; // which record of the event is made, or waited for
} Op;

static struct {
  Op ops[kMostOps];
  int count, done;
} streams[kMostStreams];

static uintptr_t log_[kMostOps][2];
static int logged;

static void RunUntil(int stream, const Event *event, int record);

static void Reach(const Event *event, int record) {
  for (int at = 0; at < kMostStreams && event->reached < record; ++at)
    RunUntil(at, event, record);
}

// Runs a stream as far as the record that is wanted, if it is on it.
static void RunUntil(int stream, const Event *event, int record) {
  int last = -1;
  for (int at = streams[stream].done; at < streams[stream].count; ++at) {
    const Op *op = &streams[stream].ops[at];
    if (op->kind == kRecord && op->event == event && op->record == record)
      last = at;
  }
  while (streams[stream].done <= last) {
    Op *op = &streams[stream].ops[streams[stream].done];
    if (op->kind == kFollow)
      Reach(op->event, op->record);
    if (op->kind == kCopy) {
      memcpy((void *)op->to, (const void *)op->from, op->size);
      log_[logged][0] = (uintptr_t)stream;
      log_[logged++][1] = op->to;
    }
    if (op->kind == kRecord)
      op->event->reached = op->record;
    ++streams[stream].done;
  }
}

static int Put(void *stream, Op op) {
  const uintptr_t at = (uintptr_t)stream - 1;
  if (at >= kMostStreams || streams[at].count == kMostOps)
    return 400;
  streams[at].ops[streams[at].count++] = op;
  return 0;
}

// The copy that is refused, counted from 1; none without it.
#ifndef REFUSED
#define REFUSED 0
#endif

static int asked;

int cuMemcpyAsync(uintptr_t to, uintptr_t from, size_t size, void *stream) {
  if (++asked == REFUSED)
    return 1;
  return Put(stream, (Op){.kind = kCopy, .to = to, .from = from, .size = size});
}

#ifdef SEVERAL_AT_ONCE
typedef struct {
  int order, source[2], destination[2];
  unsigned int flags;
} Attributes;

static int calls[kMostOps]; // copies of each call
static int called;

// As in CUDA 12.8, with one kind of copies, which is what is used of it.
int cuMemcpyBatchAsync(uintptr_t *to, uintptr_t *from, size_t *sizes,
                       size_t count, Attributes *kinds, size_t *first_of_kind,
                       size_t num_kinds, size_t *failed, void *stream) {
  if (num_kinds != 1 || first_of_kind[0] != 0 || kinds[0].order != 3)
    return 1;
#ifdef NOT_ON_THIS_DEVICE
  return 801;
#endif
  calls[called++] = (int)count;
  for (size_t at = 0; at < count; ++at)
    if (++asked == REFUSED ||
        Put(stream, (Op){.kind = kCopy,
                         .to = to[at],
                         .from = from[at],
                         .size = sizes[at]}) != 0) {
      *failed = at;
      return asked == REFUSED ? 1 : 400;
    }
  return 0;
}

// For the test: how many copies the n-th call made; 0: there was none.
int late_call(int n) { return n < called ? calls[n] : 0; }
#endif

int cuEventCreate(void **event, unsigned int flags) {
  (void)flags;
  *event = calloc(1, sizeof(Event));
  return 0;
}

int cuEventRecord(void *event, void *stream) {
  Event *of = event;
  return Put(stream,
             (Op){.kind = kRecord, .event = of, .record = ++of->records});
}

int cuStreamWaitEvent(void *stream, void *event, unsigned int flags) {
  (void)flags;
  Event *of = event;
  return Put(stream, (Op){.kind = kFollow, .event = of, .record = of->records});
}

int cuEventSynchronize(void *event) {
  Event *of = event;
  Reach(of, of->records);
  return of->reached == of->records ? 0 : 600;
}

// Still referred to by what was enqueued.
int cuEventDestroy_v2(void *event) {
  (void)event;
  return 0;
}

int cuGetErrorString(int status, const char **text) {
  *text = status == 400 ? "invalid stream"
          : status == 1 ? "invalid argument"
                        : "not ready";
  return 0;
}

// For the test: how many copies were done, and on which stream and where to the
// n-th was.
int late_copies(void) { return logged; }
uintptr_t late_stream(int n) { return log_[n][0] + 1; }
uintptr_t late_target(int n) { return log_[n][1]; }
