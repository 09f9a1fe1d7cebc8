// A load generator for HTTP/1.1 that is cheap enough to share its cores with the server: one thread, epoll, requests made beforehand.
//
//   loadgen REQUESTS HOST PORT CONNECTIONS SECONDS WARMUP RATE SEED [DEADLINE_MS]
//
// Each connection has one request in flight. With RATE 0 the next is sent as soon as an answer is whole (closed loop). With RATE r, in
// requests a second over all connections, each connection's requests fall due by a Poisson process of its own; one that falls due while
// its connection still waits is sent late, and its latency counts from when it was due (no coordinated omission).
//
// With DEADLINE_MS (and a RATE) the requests of all connections fall due by one Poisson process, and each takes a connection that is
// idle: no request waits for another one's answer while one is. A 503 then counts as refused, not as an error, and answers within
// DEADLINE_MS of when they were due are counted apart. What found no connection idle before the end is unsent.
//
// REQUESTS is a file of little-endian integers: u32 count, then count times (u32 length, u32 answer, u32 tail, length bytes of request,
// tail bytes): the body of an answer must have `answer` bytes (0: any number) and end in `tail`. Requests are sent in turn.
// Prints one line of JSON on stdout; an answer that isn't right, a connection that breaks and a time-out count as errors. Exit status:
// 0 measured, 2 wrong usage, 3 no connection. Latencies count requests sent within SECONDS after WARMUP.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define GRACE 10.0  // seconds that answers may take after the end
#define CHUNK 65536

typedef struct {
  uint32_t length, answer, tail;
  char *bytes, *ending;
} Request;

typedef struct {
  int fd, busy, writing;
  const Request *request;
  size_t sent;
  double due;  // when its next request may be sent; while busy, when the present one was due
  char *in;
  size_t filled, room;
  size_t head;  // length of the answer's head, 0 until it is in
  long body;
  int status, chunked, closing;
} Connection;

static Request *requests;
static uint32_t request_count;
static uint64_t turn;
static struct sockaddr_in address;
static int epoll;
static uint64_t random_state;
static double rate_each, begin, end;
static double pool_due, deadline_ms;  // of the one process over all connections; 0: each connection has its own
static int pool_next;

static float *latencies;
static size_t latency_count, latency_room;
static long errors, refused, within, unsent;
static int bad_status;
static char bad_reason[64];

static void *checked(void *memory) {
  if (!memory) {
    fprintf(stderr, "loadgen: out of memory\n");
    exit(2);
  }
  return memory;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static double uniform(void) {  // in (0, 1], xorshift
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return ((random_state >> 11) + 1) * (1.0 / 9007199254740993.0);
}

static double gap(void) { return -log(uniform()) / rate_each; }

static void watch(Connection *c, int operation, int writing) {
  struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
  epoll_ctl(epoll, operation, c->fd, &event);
  c->writing = writing;
}

static int dial(Connection *c) {
  int on = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    return 0;
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  c->busy = 0;
  c->filled = c->head = 0;
  watch(c, EPOLL_CTL_ADD, 0);
  return 1;
}

static void fail(Connection *c, int status, const char *reason) {
  if (c->due < begin || c->due >= end) return;
  if (!errors++) {
    bad_status = status;
    snprintf(bad_reason, sizeof bad_reason, "%s", reason);
  }
}

static void hang_up(Connection *c) {
  close(c->fd);
  c->fd = -1;
  c->busy = 0;
}

// Sends what the socket takes; 0 when the connection is broken.
static int push(Connection *c) {
  while (c->sent < c->request->length) {
    ssize_t n = write(c->fd, c->request->bytes + c->sent, c->request->length - c->sent);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return 0;
      if (!c->writing) watch(c, EPOLL_CTL_MOD, 1);
      return 1;
    }
    c->sent += n;
  }
  if (c->writing) watch(c, EPOLL_CTL_MOD, 0);
  return 1;
}

static int launch(Connection *c) {
  c->request = &requests[turn++ % request_count];
  c->busy = 1;
  c->sent = c->filled = c->head = 0;
  return push(c);
}

// Reads the head when it is whole; 0 when it isn't yet.
static int read_head(Connection *c) {
  char *stop = memmem(c->in, c->filled, "\r\n\r\n", 4);
  if (!stop) return 0;
  c->head = stop - c->in + 4;
  c->status = c->filled > 12 ? atoi(c->in + 9) : 0;
  c->body = -1;
  c->chunked = c->closing = 0;
  for (char *line = c->in; line < stop;) {
    char *next = memmem(line, stop + 2 - line, "\r\n", 2);
    if (!next) break;
    if (!strncasecmp(line, "content-length:", 15)) c->body = atol(line + 15);
    if (!strncasecmp(line, "transfer-encoding:", 18)) c->chunked = 1;
    if (!strncasecmp(line, "connection: close", 17)) c->closing = 1;
    line = next + 2;
  }
  return 1;
}

static int whole(Connection *c) {
  if (!c->head && !read_head(c)) return 0;
  if (c->chunked) return c->filled >= c->head + 5 && !memcmp(c->in + c->filled - 5, "0\r\n\r\n", 5);
  return c->filled >= c->head + (c->body > 0 ? (size_t)c->body : 0);
}

static const char *fault(Connection *c) {  // what is wrong with a whole answer, NULL when it's right
  const Request *r = c->request;
  size_t body = c->filled - c->head;
  if (c->status != 200) return "status";
  if (c->chunked) return r->answer || r->tail ? "a chunked answer can't be checked" : NULL;
  if ((r->answer && body != r->answer) || (c->body >= 0 && body != (size_t)c->body)) return "length";
  if (r->tail && (body < r->tail || memcmp(c->in + c->filled - r->tail, r->ending, r->tail))) return "content";
  return NULL;
}

static void finish(Connection *c, double t) {
  const char *reason = fault(c);
  c->busy = 0;
  if (deadline_ms > 0 && c->status == 503) {
    refused += c->due >= begin && c->due < end;
  } else if (reason) {
    fail(c, c->status, reason);
  } else if (c->due >= begin && c->due < end) {
    if (latency_count == latency_room) {
      latency_room = latency_room ? 2 * latency_room : CHUNK;
      latencies = checked(realloc(latencies, latency_room * sizeof *latencies));
    }
    latencies[latency_count++] = (t - c->due) * 1e3;
    within += (t - c->due) * 1e3 <= deadline_ms;
  }
  if (deadline_ms > 0) {
    if (c->closing) hang_up(c);
    return;
  }
  c->due = rate_each > 0 ? c->due + gap() : t;
  if (c->closing || (c->due <= t && c->due < end && !launch(c))) hang_up(c);  // what is due is launched anew on a fresh connection
}

static void receive(Connection *c) {
  for (;;) {
    if (c->room - c->filled < CHUNK) c->in = checked(realloc(c->in, c->room = 2 * c->room + 2 * CHUNK));
    ssize_t n = read(c->fd, c->in + c->filled, c->room - c->filled);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
      if (c->busy) fail(c, 0, "connection lost");
      hang_up(c);
      c->due = now();
      return;
    }
    if (n > 0) c->filled += n;
    if (n < CHUNK) break;
  }
  if (c->busy && c->filled && whole(c)) finish(c, now());
}

// Starts what is due by the one process; answers when the next is, or 0 when all connections are busy: an answer will free one.
static double start_pooled(Connection *all, int count) {
  for (double t = now(); pool_due < end && t < end && pool_due <= t; t = now()) {
    int tried = 0;
    while (tried < count && all[pool_next].busy) pool_next = (pool_next + 1) % count, tried++;
    if (tried == count) return 0;
    Connection *c = &all[pool_next];
    c->due = pool_due;
    pool_due += gap();
    if ((c->fd < 0 && !dial(c)) || !launch(c)) {
      fail(c, 0, "can't connect or send");
      if (c->fd >= 0) hang_up(c);
    }
    pool_next = (pool_next + 1) % count;
  }
  return pool_due < end ? pool_due : 0;
}

// Starts what is due; answers when the next is, or 0 when none waits for its time.
static double start_due(Connection *all, int count) {
  double next = 0;
  for (int i = 0; i < count; i++) {
    Connection *c = &all[i];
    if (c->busy || c->due >= end) continue;
    if (c->due > now()) {
      if (!next || c->due < next) next = c->due;
      continue;
    }
    if ((c->fd < 0 && !dial(c)) || !launch(c)) {
      fail(c, 0, "can't connect or send");
      if (c->fd >= 0) hang_up(c);
      c->due = now() + 0.01;
    }
  }
  return next;
}

static int busy(const Connection *all, int count) {
  int n = 0;
  for (int i = 0; i < count; i++) n += all[i].busy;
  return n;
}

static void wake_at(int timer, double t) {
  double wait = t ? t - now() : 0;
  if (t && wait < 1e-6) wait = 1e-6;
  struct itimerspec when = {.it_value = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)}};
  timerfd_settime(timer, 0, &when, NULL);
}

static void run(Connection *all, int count) {
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN}, ready[64];
  epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
  for (;;) {
    double next = deadline_ms > 0 ? start_pooled(all, count) : start_due(all, count), t = now();
    if (t >= end && !busy(all, count)) break;
    if (t >= end + GRACE) break;
    wake_at(timer, next);
    int n = epoll_wait(epoll, ready, 64, 100);
    for (int i = 0; i < n; i++) {
      Connection *c = ready[i].data.ptr;
      if (!c) {
        uint64_t expirations;
        (void)!read(timer, &expirations, sizeof expirations);
        continue;
      }
      if (c->fd >= 0 && (ready[i].events & EPOLLOUT) && c->busy && !push(c)) {
        fail(c, 0, "connection lost");
        hang_up(c);
      }
      if (c->fd >= 0 && (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) receive(c);
    }
  }
  for (; deadline_ms > 0 && pool_due < end; pool_due += gap()) unsent += pool_due >= begin;
  for (int i = 0; i < count; i++)
    if (all[i].busy) fail(&all[i], 0, "no answer in time");
}

static void load(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file || fread(&request_count, 4, 1, file) != 1 || !request_count) {
    fprintf(stderr, "loadgen: %s: can't be read, or holds no request\n", path);
    exit(2);
  }
  requests = checked(calloc(request_count, sizeof *requests));
  for (uint32_t i = 0; i < request_count; i++) {
    Request *r = &requests[i];
    if (fread(r, 4, 3, file) == 3) {
      r->bytes = checked(malloc(r->length + r->tail + 1));
      r->ending = r->bytes + r->length;
      if (fread(r->bytes, 1, r->length + r->tail, file) == (size_t)r->length + r->tail) continue;
    }
    fprintf(stderr, "loadgen: %s: ends in the middle of request %u\n", path, i);
    exit(2);
  }
  fclose(file);
}

static int by_value(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return x < y ? -1 : x > y;
}

static double quantile(double q) {
  if (!latency_count) return -1;
  double index = ceil(q * latency_count) - 1;
  return latencies[index < 0 ? 0 : (size_t)index];
}

static void report(double seconds) {
  double sum = 0;
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  qsort(latencies, latency_count, sizeof *latencies, by_value);
  for (size_t i = 0; i < latency_count; i++) sum += latencies[i];
  double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  printf("{\"ok\":%zu,\"errors\":%ld,\"bad_status\":%d,\"bad_reason\":\"%s\",\"seconds\":%.3f,\"rate\":%.3f,\"mean_ms\":%.4f,", latency_count, errors,
         bad_status, bad_reason, seconds, latency_count / seconds, latency_count ? sum / latency_count : -1);
  printf("\"refused\":%ld,\"within\":%ld,\"unsent\":%ld,", refused, within, unsent);
  printf("\"p50_ms\":%.4f,\"p90_ms\":%.4f,\"p99_ms\":%.4f,\"p999_ms\":%.4f,\"max_ms\":%.4f,\"client_cpu_s\":%.3f}\n", quantile(.5), quantile(.9),
         quantile(.99), quantile(.999), quantile(1), cpu);
}

int main(int argc, char **argv) {
  if (argc != 9 && argc != 10) {
    fprintf(stderr, "usage: loadgen REQUESTS HOST PORT CONNECTIONS SECONDS WARMUP RATE SEED [DEADLINE_MS]\n");
    return 2;
  }
  int count = atoi(argv[4]);
  double seconds = atof(argv[5]), warmup = atof(argv[6]), rate = atof(argv[7]);
  load(argv[1]);
  address.sin_family = AF_INET;
  address.sin_port = htons(atoi(argv[3]));
  if (inet_pton(AF_INET, argv[2], &address.sin_addr) != 1 || count < 1 || seconds <= 0 || warmup < 0 || rate < 0) {
    fprintf(stderr, "loadgen: HOST must be an IPv4 address, CONNECTIONS at least 1, SECONDS above 0, WARMUP and RATE not below 0\n");
    return 2;
  }
  deadline_ms = argc == 10 ? atof(argv[9]) : 0;
  if (deadline_ms < 0 || (deadline_ms > 0 && rate <= 0)) {
    fprintf(stderr, "loadgen: DEADLINE_MS must not be below 0, and needs a RATE\n");
    return 2;
  }
  random_state = 88172645463325252ull ^ (strtoull(argv[8], NULL, 10) * 2654435761u);
  rate_each = deadline_ms > 0 ? rate : rate / count;
  epoll = epoll_create1(0);
  Connection *all = checked(calloc(count, sizeof *all));
  for (int i = 0; i < count; i++)
    if (!dial(&all[i])) {
      fprintf(stderr, "loadgen: can't connect to %s:%s: %s\n", argv[2], argv[3], strerror(errno));
      return 3;
    }
  double start = now();
  begin = start + warmup;
  end = begin + seconds;
  for (int i = 0; i < count; i++) all[i].due = rate > 0 ? start + gap() : start;
  pool_due = start + (rate > 0 ? gap() : 0);
  run(all, count);
  report(seconds);
  return 0;
}
