//go:build ignore

// The module that Envoy loads: an HTTP filter before ext_authz that answers from the table of decisions (table.h). On a
// hit it changes the request as Gatepost's response would, and marks it in dynamic metadata, so ext_authz skips it. On
// a miss ext_authz asks Gatepost. It has no rules of its own. Any doubt is a miss. It strips headers (xds/strip.go).
//
// Each worker thread maps the table itself (struct view), so it can unmap an old table without the other threads.
// After a miss it checks for a new one. Neither table nor configuration is trusted: the file size is compared with
// the header once, and the bounds of each field before use. Only a file that shrinks while it is mapped is fatal
// (SIGBUS). Gatepost never truncates one, and nobody else may have write access to the folder. Hits are counted in a
// second file, the only one that this module writes.
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "table.h"

#ifndef GP_CLOCK // the unit driver defines its own
#define GP_CLOCK clock_gettime
#endif
// The functions of Envoy 1.40 that this module calls, and the hooks that Envoy calls (docs: "Dynamic modules"). An enum
// is an int. REQUEST and RESPONSE are the maps of headers; CONTINUE lets the stream go on, STOP does not.
#define ENVOY(name) envoy_dynamic_module_callback_##name
#define HOOK(type, name) __attribute__((visibility("default"))) type envoy_dynamic_module_on_##name
enum { REQUEST = 0, RESPONSE = 2, CONTINUE = 0, STOP = 1 };
struct buffer { const char *ptr; size_t length; };
struct header { struct buffer name, value; };
static const struct buffer none;
const void *ENVOY(get_most_specific_route_config)(void *filter);
bool ENVOY(http_set_header)(void *filter, int map, struct buffer name, struct buffer value);
bool ENVOY(http_add_header)(void *filter, int map, struct buffer name, struct buffer value);
size_t ENVOY(http_get_headers_size)(void *filter, int map);
bool ENVOY(http_get_headers)(void *filter, int map, struct header *all);
void ENVOY(http_set_dynamic_metadata_string_batch)(void *filter, struct buffer space, const struct header *all, size_t count);
bool ENVOY(http_set_filter_state_bytes)(void *filter, struct buffer key, struct buffer value);
size_t ENVOY(early_header_mutation_get_headers_size)(void *request);
bool ENVOY(early_header_mutation_get_headers)(void *request, struct header *all);
bool ENVOY(early_header_mutation_set_header)(void *request, struct buffer name, struct buffer value);
bool ENVOY(early_header_mutation_remove_header)(void *request, struct buffer name);
void ENVOY(http_send_response)(void *filter, uint32_t status, struct header *all, size_t count, struct buffer body, struct buffer details);

// TEXT is the name of a header, or one that Gatepost has too; a test of package xds compares them.
#define NAME(s) {(s), sizeof(s) - 1}
#define TEXT(s) ((struct buffer)NAME(s))
#define SCOPE TEXT("x-forwarded-host") // Envoy finds the scope by it
#define STREAM_DURATION TEXT("x-envoy-upstream-stream-duration-ms")
// The listener's limits of a request's headers (xds/listener.go).
#define MOST_HEADERS 64
#define MOST_HEADER_BYTES 16384
#define ROOM_FOR_HEADERS 128 // with those that Envoy adds
#define LONGEST_PATH 1024 // of a line of the access log (xds/accesslog.go)

typedef const _Atomic uint64_t *words;
enum { AUTHORIZATION, ORIGIN, COOKIE, SUBPROTOCOL };
static const struct buffer inputs[GP_INPUTS] = {[AUTHORIZATION] = NAME("authorization"), [ORIGIN] = NAME("origin"),
    [COOKIE] = NAME("cookie"), [SUBPROTOCOL] = NAME("sec-websocket-protocol")};

// ---- SipHash-2-4-128 (Aumasson and Bernstein, 2012) ----
static uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }
static void sip_round(uint64_t v[4]) {
  v[0] += v[1]; v[1] = rotate(v[1], 13) ^ v[0]; v[0] = rotate(v[0], 32);
  v[2] += v[3]; v[3] = rotate(v[3], 16) ^ v[2];
  v[0] += v[3]; v[3] = rotate(v[3], 21) ^ v[0];
  v[2] += v[1]; v[1] = rotate(v[1], 17) ^ v[2]; v[2] = rotate(v[2], 32);
}

void gp_siphash(const uint64_t key[2], const uint8_t *message, size_t length, uint64_t tag[2]) {
  uint64_t v[4] = {0x736f6d6570736575 ^ key[0], 0x646f72616e646f6d ^ key[1] ^ 0xee, 0x6c7967656e657261 ^ key[0],
                   0x7465646279746573 ^ key[1]};
  for (size_t at = 0;; at += 8) {
    bool last = length - at < 8;
    uint64_t m = (uint64_t)length << 56; // amd64 and arm64 are little-endian, as SipHash is
    if (last) memcpy(&m, message + at, length - at);
    else memcpy(&m, message + at, sizeof m);
    v[3] ^= m; sip_round(v); sip_round(v); v[0] ^= m;
    if (last) break;
  }
  v[2] ^= 0xee;
  for (int half = 0; half < 2; half++) {
    for (int i = 0; i < 4; i++) sip_round(v);
    tag[half] = v[0] ^ v[1] ^ v[2] ^ v[3]; v[1] ^= 0xdd;
  }
}

// ---- Configuration ----
struct config { char path[PATH_MAX]; };
struct route {
  uint64_t service; // id for counting hits
  uint64_t longest; // the longest duration of a request of the route, in nanoseconds; 0 means no limit
  uint8_t rule[GP_RULE_BYTES];
  bool uses[GP_INPUTS];
  bool forward_token, log;
  char user_header[128];
  bool strips; // last: while a gateway is upgraded, Envoy can give this to the module before
};

// parse_route parses the text that package xds generates: "1 RULE LONGEST FLAGS HEADER SERVICE". RULE and SERVICE are
// in hex, LONGEST is in milliseconds; FLAGS are "-" or of f (the token is forwarded), o, c and s (Origin, Cookie and
// Sec-WebSocket-Protocol are inputs), l (access log), v (the module does the work of the strip filter).
static bool parse_route(struct buffer config, struct route *r) {
  char text[256], again[256], rule[2 * GP_RULE_BYTES + 1], flags[8];
  unsigned long long longest, service;
  if (config.length >= sizeof text || memchr(config.ptr, 0, config.length)) return false;
  memcpy(text, config.ptr, config.length), text[config.length] = 0;
  if (sscanf(text, "1 %32[0-9a-f] %19llu %7[focslv-] %127[!-~] %16llx", rule, &longest, flags, r->user_header, &service) != 5 ||
      strlen(rule) != sizeof rule - 1 || longest > UINT64_MAX / 1000000 || service == 0) return false;
  if (snprintf(again, sizeof again, "1 %s %llu %s %s %016llx", rule, longest, flags, r->user_header, service) < 0 ||
      strcmp(again, text) != 0) return false;
  for (size_t i = 0; i < GP_RULE_BYTES; i++)
    if (sscanf(rule + 2 * i, "%2hhx", &r->rule[i]) != 1) return false;
  r->longest = longest * 1000000, r->service = service;
  r->forward_token = strchr(flags, 'f'), r->log = strchr(flags, 'l'), r->strips = strchr(flags, 'v');
  r->uses[AUTHORIZATION] = true, r->uses[ORIGIN] = strchr(flags, 'o');
  r->uses[COOKIE] = strchr(flags, 'c'), r->uses[SUBPROTOCOL] = strchr(flags, 's');
  return true;
}

// ---- The table ----
#define HITS_BYTES (sizeof(uint64_t) * GP_HITS_SLOTS * GP_HITS_WORDS)
static _Thread_local struct view {
  char path[PATH_MAX];
  words table; // NULL if none is mapped
  _Atomic uint64_t *hits; // NULL only if there is no table
  uint64_t bytes, buckets, dev, ino;
  uint64_t looked; // time of the last search for a new table; 0 before the first
} view;

// now is a clock in nanoseconds, at most INT64_MAX, or 0 if it cannot be read.
static uint64_t now(clockid_t clock) {
  struct timespec t;
  if (GP_CLOCK(clock, &t) != 0 || t.tv_sec < 0 || t.tv_sec > INT64_MAX / 1000000000 - 1) return 0;
  return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}
static uint64_t load(words w) { return atomic_load_explicit(w, memory_order_relaxed); }

// begin loads a sequence before the words that it guards; unchanged returns whether those words are valid.
static uint64_t begin(words seq) { return atomic_load_explicit(seq, memory_order_acquire); }
static bool unchanged(words seq, uint64_t before) {
  atomic_thread_fence(memory_order_acquire);
  return before % 2 == 0 && load(seq) == before;
}

static void unmap(void) {
  if (view.table) munmap((void *)view.table, view.bytes);
  if (view.hits) munmap((void *)view.hits, HITS_BYTES);
  view.table = NULL, view.hits = NULL;
}

// map maps a regular file of a size within bounds. Statx fills s: fstat needs a newer libc than Envoy does.
static void *map(const char *path, int mode, int access, size_t least, size_t most, struct statx *s) {
  int fd = open(path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  bool fits = fd >= 0 && statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, s) == 0 && S_ISREG(s->stx_mode) &&
              s->stx_size >= least && s->stx_size <= most;
  void *file = fits ? mmap(NULL, s->stx_size, access, MAP_SHARED, fd, 0) : MAP_FAILED;
  if (fd >= 0) close(fd);
  return file == MAP_FAILED ? NULL : file;
}

// refresh checks for a new table, at most every 20 ms, and returns whether there is one. Without the file of the counts
// it is not used, because every hit must be counted.
static bool refresh(void) {
  const size_t word = sizeof(uint64_t), header = word * GP_HEADER_WORDS, bucket = word * GP_BUCKET_SLOTS * GP_SLOT_WORDS;
  char hits[PATH_MAX + 8];
  struct statx s, counts;
  uint64_t t = now(CLOCK_BOOTTIME);
  if (t == 0 || (view.looked && t - view.looked < 20000000)) return false;
  view.looked = t;
  words table = map(view.path, O_RDONLY, PROT_READ, header + bucket, header + bucket * GP_MAX_BUCKETS, &s);
  if (!table) return false;
  uint64_t dev = (uint64_t)s.stx_dev_major << 32 | s.stx_dev_minor, buckets = load(table + GP_HEADER_BUCKETS);
  if ((view.table && dev == view.dev && s.stx_ino == view.ino) || load(table + GP_HEADER_MAGIC) != GP_MAGIC ||
      buckets > GP_MAX_BUCKETS || s.stx_size != header + bucket * buckets)
    return munmap((void *)table, s.stx_size), false;
  unmap();
  view.table = table, view.bytes = s.stx_size, view.buckets = buckets, view.dev = dev, view.ino = s.stx_ino;
  (void)snprintf(hits, sizeof hits, "%s.hits", view.path);
  if (!(view.hits = map(hits, O_RDWR, PROT_READ | PROT_WRITE, HITS_BYTES, HITS_BYTES, &counts))) unmap();
  return view.table;
}

struct decision {
  uint64_t expires, until, left; // the ends of the token and of the decision, and nanoseconds until the token's
  uint64_t text[GP_SLOT_WORDS - GP_SLOT_USER]; // the user and the session, as in the slot
};

// read_slot copies a slot's decision if its tag is the wanted one. It compares no time with a clock.
static bool read_slot(words slot, const uint64_t tag[2], struct decision *d) {
  uint64_t before = begin(slot + GP_SLOT_SEQ);
  if (load(slot + GP_SLOT_TAG0) != tag[0] || load(slot + GP_SLOT_TAG1) != tag[1]) return false;
  d->expires = load(slot + GP_SLOT_EXPIRES), d->until = load(slot + GP_SLOT_UNTIL);
  for (size_t i = 0; i < GP_SLOT_WORDS - GP_SLOT_USER; i++) d->text[i] = load(slot + GP_SLOT_USER + i);
  return unchanged(slot + GP_SLOT_SEQ, before);
}

// user_of returns a decision's user, which is empty if it is not within its slot or not valid as a header value.
static struct buffer user_of(const struct decision *d) {
  const char *text = (const char *)d->text;
  size_t length = (uint8_t)text[0] < sizeof d->text ? (uint8_t)text[0] : 0;
  for (size_t i = 1; i <= length; i++)
    if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) length = 0;
  return (struct buffer){text + 1, length};
}

// look_up looks for the decision of a message and returns whether it is in force. The clocks are read after the table:
// if the thread was held in between, the decision has ended. The sequence of the lease is compared at the end, so the
// decision was in force after its slot was read.
static bool look_up(const uint8_t *message, size_t length, struct decision *d) {
  words t = view.table;
  uint64_t lease = begin(t + GP_HEADER_SEQ), tag[2];
  uint64_t key[2] = {load(t + GP_HEADER_KEY0), load(t + GP_HEADER_KEY1)};
  uint64_t lease_boot = load(t + GP_HEADER_UNTIL_BOOT), lease_wall = load(t + GP_HEADER_UNTIL_WALL);
  gp_siphash(key, message, length, tag);
  words bucket = t + GP_HEADER_WORDS + ((tag[0] >> 32) * view.buckets >> 32) * GP_BUCKET_SLOTS * GP_SLOT_WORDS;
  bool found = false;
  for (size_t i = 0; i < GP_BUCKET_SLOTS && !found; i++) found = read_slot(bucket + i * GP_SLOT_WORDS, tag, d);
  uint64_t boot = now(CLOCK_BOOTTIME), wall = now(CLOCK_REALTIME);
  if (!found || boot == 0 || wall == 0) return false;
  if (lease_boot <= boot || lease_boot - boot > GP_MAX_LEASE || lease_wall <= wall) return false;
  if (d->until <= boot || d->until - boot > GP_MAX_DECISION) return false;
  if (d->expires > INT64_MAX || d->expires <= wall || user_of(d).length == 0) return false;
  d->left = d->expires - wall;
  return unchanged(t + GP_HEADER_SEQ, lease);
}

static bool find(const struct config *c, const uint8_t *message, size_t length, struct decision *d) {
  if (strcmp(view.path, c->path) != 0) unmap(), view.looked = 0, memcpy(view.path, c->path, sizeof view.path);
  return (view.table && look_up(message, length, d)) || (refresh() && look_up(message, length, d));
}

// ---- The request ----
// Envoy gives all headers in one call, which takes it as long as to find one by its name.
static bool is(struct buffer a, struct buffer b) { return a.length == b.length && memcmp(a.ptr, b.ptr, b.length) == 0; }

// value_of returns a header's value, or an empty one, and how often the header is there.
static struct buffer value_of(const struct header *all, size_t count, struct buffer name, size_t *times) {
  struct buffer value = {"", 0};
  for (size_t i = *times = 0; i < count; i++)
    if (is(all[i].name, name)) value = all[i].value, ++*times;
  return value;
}

// path_of returns the path without its query, and at most so many bytes.
static struct buffer path_of(const struct header *all, size_t count, size_t most) {
  size_t times, n = 0;
  struct buffer path = value_of(all, count, TEXT(":path"), &times);
  while (n < path.length && n < most && path.ptr[n] != '?') n++;
  return (struct buffer){path.ptr, n};
}

// write_message writes what the tag is computed from, and returns its length, or 0 if the request is not one to look
// up: it has no Authorization, a header more than once, or too much. There is always room for the lengths to come.
static size_t write_message(const struct route *r, const struct header *all, size_t count, uint8_t message[GP_MAX_MESSAGE]) {
  size_t length = GP_RULE_BYTES, times = 0;
  memcpy(message, r->rule, GP_RULE_BYTES);
  for (size_t i = 0; i < GP_INPUTS; i++) {
    struct buffer value = r->uses[i] ? value_of(all, count, inputs[i], &times) : none;
    if (times > 1 || (i == AUTHORIZATION && value.length == 0)) return 0;
    if (value.length > GP_MAX_MESSAGE - 2 * (GP_INPUTS - i) - length) return 0;
    message[length++] = (uint8_t)value.length;
    message[length++] = (uint8_t)(value.length >> 8);
    if (value.length > 0) memcpy(message + length, value.ptr, value.length);
    length += value.length;
  }
  return length;
}

// write_session writes the id of the session, a UUID, and returns whether there is one.
static bool write_session(const struct decision *d, size_t user_length, char *end) {
  uint64_t high = d->text[GP_SLOT_SESSION - GP_SLOT_USER], low = d->text[GP_SLOT_SESSION - GP_SLOT_USER + 1];
  if ((high | low) == 0 || user_length > GP_USER_WITH_SESSION) return false;
  for (int i = 0; i < 32; i++) {
    if (i >= 8 && i <= 20 && i % 4 == 0) *end++ = '-';
    *end++ = "0123456789abcdef"[(i < 16 ? high >> (60 - 4 * i) : low >> (124 - 4 * i)) & 15];
  } // snprintf would take a thousand instructions
  return true;
}

// let_pass changes the request as Gatepost's response would (authz/headers.go). It sets the mark last: if an earlier
// step fails, Envoy asks Gatepost. To replace a header by name, Envoy indexes all of them; to add one, it does not.
static bool let_pass(void *filter, const struct route *r, const struct header *all, size_t count, const struct decision *d) {
  struct buffer name = {r->user_header, strlen(r->user_header)}, user = user_of(d);
  size_t own = 0, bytes = name.length + user.length + STREAM_DURATION.length + sizeof "9223372036854775807";
  for (size_t i = 0; i < count; i++) {
    bytes += all[i].name.length + all[i].value.length;
    own += all[i].name.length == name.length && strncasecmp(all[i].name.ptr, name.ptr, name.length) == 0; // the client's
  }
  if (count + 2 > MOST_HEADERS || bytes > MOST_HEADER_BYTES) return false; // ext_authz checks the limits once more
  if (!(own ? ENVOY(http_set_header) : ENVOY(http_add_header))(filter, REQUEST, name, user)) return false;
  if (r->longest == 0 || d->left < r->longest) {
    char text[24];
    int n = snprintf(text, sizeof text, "%" PRIu64, (d->left - 1) / 1000000 + 1);
    if (!ENVOY(http_set_header)(filter, REQUEST, STREAM_DURATION, (struct buffer){text, (size_t)n})) return false;
  }
  if (!r->forward_token && !ENVOY(http_set_header)(filter, REQUEST, inputs[AUTHORIZATION], none)) return false;
  char id[36];
  struct header mark[] = {{TEXT("hit"), user}, {TEXT("hit_session"), {id, sizeof id}}}; // the access log has both
  bool session = r->log && write_session(d, user.length, id);
  return ENVOY(http_set_dynamic_metadata_string_batch)(filter, TEXT("envoy.filters.http.ext_authz"), mark, 1 + session), true;
}

// count_hit adds a hit to the service's counter. A slot belongs to the first service that claims it.
static void count_hit(uint64_t service) {
  for (uint64_t i = 0; i < GP_HITS_PROBES; i++) {
    _Atomic uint64_t *slot = view.hits + (service + i) % GP_HITS_SLOTS * GP_HITS_WORDS;
    uint64_t owner = load(slot);
    if (owner == 0 && atomic_compare_exchange_strong(slot, &owner, service)) owner = service;
    if (owner == service) return (void)atomic_fetch_add_explicit(slot + 1, 1, memory_order_relaxed);
  }
}

HOOK(int, http_filter_request_headers)(void *filter, const void *config, bool end) {
  const struct route *r = ENVOY(get_most_specific_route_config)(filter);
  if (!r) return CONTINUE;
  if (r->strips && !ENVOY(http_set_header)(filter, REQUEST, SCOPE, none))
    return ENVOY(http_send_response)(filter, 503, NULL, 0, none, none), STOP; // no upstream may receive it
  struct header all[ROOM_FOR_HEADERS];
  uint8_t message[GP_MAX_MESSAGE];
  struct decision d;
  size_t count = ENVOY(http_get_headers_size)(filter, REQUEST);
  if (count > ROOM_FOR_HEADERS || !ENVOY(http_get_headers)(filter, REQUEST, all)) return CONTINUE;
  if (r->log) // before a route rewrites the path
    (void)ENVOY(http_set_filter_state_bytes)(filter, TEXT("gatepost.path"), path_of(all, count, LONGEST_PATH));
  size_t length = write_message(r, all, count, message);
  if (length > 0 && find(config, message, length, &d) && let_pass(filter, r, all, count, &d)) count_hit(r->service);
  return CONTINUE;
}

HOOK(int, http_filter_response_headers)(void *filter, const void *config, bool end) {
  const struct route *r = ENVOY(get_most_specific_route_config)(filter);
  if (r && r->strips) (void)ENVOY(http_add_header)(filter, RESPONSE, TEXT("vary"), TEXT("origin"));
  return CONTINUE;
}

// ---- Before the route is found ----
// The names that no client's header may have; a space is in place of any rest (xds/strip.go).
static const char *const refused[] = {"remote-user", "x-remote-user", "forwarded", "x-real-ip", "true-client-ip", "proxy",
    "x-rewrite-url", "x-auth-request- ", "x-original- ", "x-envoy- ", "x-http-method ", "x-method-override ", "x-forwarded- "};
static bool is_refused(struct buffer name) {
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    size_t n = 0;
    while (n < name.length && refused[i][n] > ' ' && refused[i][n] == name.ptr[n]) n++;
    if (refused[i][n] == ' ' || (refused[i][n] == 0 && n == name.length))
      return !is(name, TEXT("x-forwarded-for")) && !is(name, TEXT("x-forwarded-proto"));
  }
  return false;
}

// This removes the refused headers and names the scope by the path. All headers of a name go at once, so it reads them
// again. The listener refuses a request with too many; if one came here, it could not be stripped and must not pass.
HOOK(bool, early_header_mutation_mutate)(const void *config, void *request) {
  struct header all[ROOM_FOR_HEADERS];
  size_t count, i;
  do {
    count = ENVOY(early_header_mutation_get_headers_size)(request), i = 0;
    if (count > ROOM_FOR_HEADERS || !ENVOY(early_header_mutation_get_headers)(request, all)) abort();
    while (i < count && !is_refused(all[i].name)) i++;
    if (i < count) (void)ENVOY(early_header_mutation_remove_header)(request, all[i].name); // true, removed or not
    if (i < count && ENVOY(early_header_mutation_get_headers_size)(request) >= count) abort();
  } while (i < count);
  return ENVOY(early_header_mutation_set_header)(request, SCOPE, path_of(all, count, SIZE_MAX));
}
HOOK(const void *, early_header_mutation_config_new)(void *envoy, struct buffer name, struct buffer text) { return &none; }
HOOK(void, early_header_mutation_config_destroy)(const void *config) {}

// ---- The other hooks that Envoy requires ----
HOOK(const char *, program_init)(void) { return "v0.2.0"; }
HOOK(const void *, http_filter_config_new)(void *envoy, struct buffer name, struct buffer path) {
  if (path.length == 0 || path.length >= PATH_MAX || path.ptr[0] != '/' || memchr(path.ptr, 0, path.length)) return NULL;
  struct config *c = calloc(1, sizeof *c);
  return c ? memcpy(c->path, path.ptr, path.length), c : NULL;
}
HOOK(void, http_filter_config_destroy)(const void *config) { free((void *)config); }
HOOK(const void *, http_filter_per_route_config_new)(struct buffer name, struct buffer config) {
  struct route *r = calloc(1, sizeof *r);
  return r && !parse_route(config, r) ? free(r), NULL : r;
}
HOOK(void, http_filter_per_route_config_destroy)(const void *route) { free((void *)route); }
HOOK(const void *, http_filter_new)(const void *config, void *filter) { return config; } // it has no state
HOOK(void, http_filter_destroy)(const void *filter) {}

// Envoy resolves all of these when it loads the module. None reads its arguments, which the caller removes.
#define PASS(hook) HOOK(int, http_filter_##hook)(void) { return CONTINUE; }
#define IGNORE(hook) HOOK(void, http_filter_##hook)(void) {}
PASS(request_body) PASS(request_trailers) PASS(response_body) PASS(response_trailers)
IGNORE(stream_complete) IGNORE(scheduled) IGNORE(http_callout_done) IGNORE(http_stream_headers) IGNORE(http_stream_data)
IGNORE(http_stream_trailers) IGNORE(http_stream_complete) IGNORE(http_stream_reset)
IGNORE(downstream_above_write_buffer_high_watermark) IGNORE(downstream_below_write_buffer_low_watermark)
