//go:build ignore

// The module that Envoy loads: an HTTP filter before ext_authz that answers from the table of decisions (table.h). On a
// hit it changes the request as Gatepost's response would, and marks it in dynamic metadata, so ext_authz skips it. On
// a miss ext_authz asks Gatepost. It has no rules of its own. Any doubt is a miss. On some routes it strips headers
// (xds/strip.go).
//
// Each worker thread maps the table itself (struct view), so it can unmap an old table without the other threads. It
// checks for a new one if the lease of the mapped one has expired. Neither table nor configuration is trusted: the file
// size (statx) is compared with the header once, and the bounds of each field are checked before use. Only a file that
// shrinks while it is mapped is fatal (SIGBUS). Gatepost never truncates one, and nobody else may have write access to
// the folder. Hits are counted in a second file, the only one that this module writes.
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
bool ENVOY(http_get_header)(void *filter, int map, struct buffer name, struct buffer *value, size_t i, size_t *count);
bool ENVOY(http_set_header)(void *filter, int map, struct buffer name, struct buffer value);
bool ENVOY(http_add_header)(void *filter, int map, struct buffer name, struct buffer value);
size_t ENVOY(http_get_headers_size)(void *filter, int map);
bool ENVOY(http_get_headers)(void *filter, int map, struct header *all);
void ENVOY(http_set_dynamic_metadata_string_batch)(void *filter, struct buffer space, const struct header *all, size_t count);
bool ENVOY(http_set_filter_state_bytes)(void *filter, struct buffer key, struct buffer value);
void ENVOY(http_send_response)(void *filter, uint32_t status, struct header *all, size_t count, struct buffer body, struct buffer details);

// TEXT is the name of a header, or one that Gatepost has too; a test of package xds compares them.
#define TEXT(s) ((struct buffer){(s), sizeof(s) - 1})
#define STREAM_DURATION TEXT("x-envoy-upstream-stream-duration-ms")

// The listener's limits of a request's headers (xds/listener.go).
#define MOST_HEADERS 64
#define MOST_HEADER_BYTES 16384
#define LONGEST_PATH 1024 // of a line of the access log (xds/accesslog.go)

typedef const _Atomic uint64_t *words;
enum { AUTHORIZATION, ORIGIN, COOKIE, SUBPROTOCOL };
static const struct buffer inputs[GP_INPUTS] = {[AUTHORIZATION] = {"authorization", 13}, [ORIGIN] = {"origin", 6},
    [COOKIE] = {"cookie", 6}, [SUBPROTOCOL] = {"sec-websocket-protocol", 22}};

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
  memcpy(text, config.ptr, config.length);
  text[config.length] = 0;
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
  size_t bytes;
  uint64_t buckets, dev, ino;
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

// open_file opens a regular file and returns its attributes in s, or -1 on failure. It uses statx, because fstat needs
// a newer libc than Envoy does.
static int open_file(const char *path, int mode, struct statx *s) {
  int fd = open(path, mode | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd >= 0 && (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, s) != 0 || !S_ISREG(s->stx_mode))) close(fd), fd = -1;
  return fd;
}

// map_hits maps the file of hit counts. If it fails, the table is not used either, because every hit must be counted.
static bool map_hits(void) {
  char path[PATH_MAX + 8];
  struct statx s;
  (void)snprintf(path, sizeof path, "%s.hits", view.path);
  int fd = open_file(path, O_RDWR, &s);
  if (fd < 0) return false;
  void *hits = s.stx_size == HITS_BYTES ? mmap(NULL, HITS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  close(fd);
  return (view.hits = hits == MAP_FAILED ? NULL : hits);
}

// map maps the file at the table's path if it is not the mapped one. It returns whether it did.
static bool map(int fd, const struct statx *s) {
  const size_t word = sizeof(uint64_t), header = word * GP_HEADER_WORDS, bucket = word * GP_BUCKET_SLOTS * GP_SLOT_WORDS;
  uint64_t dev = (uint64_t)s->stx_dev_major << 32 | s->stx_dev_minor;
  if (view.table && dev == view.dev && s->stx_ino == view.ino) return false;
  if (s->stx_size < header + bucket || s->stx_size > header + bucket * GP_MAX_BUCKETS) return false;
  size_t bytes = s->stx_size;
  void *table = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (table == MAP_FAILED) return false;
  uint64_t buckets = load((words)table + GP_HEADER_BUCKETS);
  if (load((words)table + GP_HEADER_MAGIC) != GP_MAGIC || buckets > GP_MAX_BUCKETS || bytes != header + bucket * buckets)
    return munmap(table, bytes), false;
  unmap();
  view.table = table, view.bytes = bytes, view.buckets = buckets, view.dev = dev, view.ino = s->stx_ino;
  if (!map_hits()) unmap();
  return view.table;
}

// refresh checks for a new table, at most every 20 ms, and returns whether there is one.
static bool refresh(void) {
  uint64_t t = now(CLOCK_BOOTTIME);
  if (t == 0 || (view.looked && t - view.looked < 20000000)) return false;
  view.looked = t;
  struct statx s;
  int fd = open_file(view.path, O_RDONLY, &s);
  bool mapped = fd >= 0 && map(fd, &s);
  if (fd >= 0) close(fd);
  return mapped;
}

struct decision {
  uint64_t expires, until; // as in the slot: the ends of the token and of the decision
  uint64_t left;           // nanoseconds until the token expires
  uint64_t text[GP_SLOT_WORDS - GP_SLOT_USER]; // the user and the session, as in the slot
};

// read_slot copies a slot's decision if its tag is the wanted one. It compares no time with a clock.
static bool read_slot(words slot, const uint64_t tag[2], struct decision *d) {
  uint64_t before = begin(slot + GP_SLOT_SEQ);
  if (load(slot + GP_SLOT_TAG0) != tag[0] || load(slot + GP_SLOT_TAG1) != tag[1]) return false;
  d->expires = load(slot + GP_SLOT_EXPIRES);
  d->until = load(slot + GP_SLOT_UNTIL);
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

// look_up looks for the decision of a message. The clocks are read after the table: if the thread was held in between,
// the decision has ended. The lease is compared once more at the end, so the decision was in force after its slot was
// read.
enum answer { MISS, HIT, STALE };
static enum answer look_up(const uint8_t *message, size_t length, struct decision *d) {
  words t = view.table;
  uint64_t lease = begin(t + GP_HEADER_SEQ), tag[2];
  uint64_t key[2] = {load(t + GP_HEADER_KEY0), load(t + GP_HEADER_KEY1)};
  uint64_t lease_boot = load(t + GP_HEADER_UNTIL_BOOT), lease_wall = load(t + GP_HEADER_UNTIL_WALL);
  if (!unchanged(t + GP_HEADER_SEQ, lease)) return STALE; // Gatepost may have been killed here
  gp_siphash(key, message, length, tag);
  words bucket = t + GP_HEADER_WORDS + ((tag[0] >> 32) * view.buckets >> 32) * GP_BUCKET_SLOTS * GP_SLOT_WORDS;
  bool found = false;
  for (size_t i = 0; i < GP_BUCKET_SLOTS && !found; i++) found = read_slot(bucket + i * GP_SLOT_WORDS, tag, d);
  uint64_t boot = now(CLOCK_BOOTTIME), wall = now(CLOCK_REALTIME);
  if (boot == 0 || wall == 0) return MISS;
  if (lease_boot <= boot || lease_boot - boot > GP_MAX_LEASE || lease_wall <= wall) return STALE;
  if (!found || d->until <= boot || d->until - boot > GP_MAX_DECISION) return MISS;
  if (d->expires > INT64_MAX || d->expires <= wall || user_of(d).length == 0) return MISS;
  d->left = d->expires - wall;
  return unchanged(t + GP_HEADER_SEQ, lease) ? HIT : MISS;
}

static bool find(const struct config *c, const uint8_t *message, size_t length, struct decision *d) {
  if (strcmp(view.path, c->path) != 0) unmap(), view.looked = 0, memcpy(view.path, c->path, sizeof view.path);
  enum answer a = view.table ? look_up(message, length, d) : STALE;
  if (a == STALE && refresh()) a = look_up(message, length, d);
  return a == HIT;
}

// ---- The request ----
// write_message writes what the tag is computed from, and returns its length, or 0 if the request is not one to look
// up: it has no Authorization, a header more than once, or too much. There is always room for the lengths to come.
static size_t write_message(void *filter, const struct route *r, uint8_t message[GP_MAX_MESSAGE]) {
  size_t length = GP_RULE_BYTES;
  memcpy(message, r->rule, GP_RULE_BYTES);
  for (size_t i = 0; i < GP_INPUTS; i++) {
    struct buffer value = {NULL, 0};
    size_t count = 0;
    if (r->uses[i] && !ENVOY(http_get_header)(filter, REQUEST, inputs[i], &value, 0, &count)) value.length = 0;
    if (count > 1 || (i == AUTHORIZATION && value.length == 0)) return 0;
    if (value.length > GP_MAX_MESSAGE - 2 * (GP_INPUTS - i) - length) return 0;
    message[length++] = (uint8_t)value.length;
    message[length++] = (uint8_t)(value.length >> 8);
    if (value.length > 0) memcpy(message + length, value.ptr, value.length);
    length += value.length;
  }
  return length;
}

// has returns how many headers of a name the request has, or -1 if it is beyond the listener's header limits after the
// headers are set. ext_authz checks the limits again, so requests near the limits are left to it.
static int has(void *filter, struct buffer name, struct buffer value) {
  int found = 0;
  struct header all[MOST_HEADERS];
  size_t count = ENVOY(http_get_headers_size)(filter, REQUEST);
  if (count + 2 > MOST_HEADERS || !ENVOY(http_get_headers)(filter, REQUEST, all)) return -1;
  size_t bytes = name.length + value.length + STREAM_DURATION.length + sizeof "9223372036854775807";
  for (size_t i = 0; i < count; i++) {
    bytes += all[i].name.length + all[i].value.length;
    found += all[i].name.length == name.length && strncasecmp(all[i].name.ptr, name.ptr, name.length) == 0;
  }
  return bytes <= MOST_HEADER_BYTES ? found : -1;
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
static bool let_pass(void *filter, const struct route *r, const struct decision *d) {
  struct buffer header = {r->user_header, strlen(r->user_header)}, user = user_of(d);
  int own = has(filter, header, user); // the client's own
  if (own < 0 || !(own ? ENVOY(http_set_header) : ENVOY(http_add_header))(filter, REQUEST, header, user)) return false;
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

// keep_path keeps the path without its query for the access log, before a route rewrites it.
static void keep_path(void *filter) {
  struct buffer path = {"", 0};
  size_t count = 0, n = 0;
  (void)ENVOY(http_get_header)(filter, REQUEST, TEXT(":path"), &path, 0, &count);
  while (n < path.length && n < LONGEST_PATH && path.ptr[n] != '?') n++;
  (void)ENVOY(http_set_filter_state_bytes)(filter, TEXT("gatepost.path"), (struct buffer){path.ptr, n});
}

// count_hit adds a hit to the service's counter. A slot belongs to the first service that claims it.
static void count_hit(uint64_t service) {
  for (uint64_t i = 0; i < GP_HITS_PROBES; i++) {
    _Atomic uint64_t *slot = view.hits + (service + i) % GP_HITS_SLOTS * GP_HITS_WORDS;
    uint64_t owner = load(slot);
    if (owner == 0 && atomic_compare_exchange_strong(slot, &owner, service)) owner = service;
    if (owner != service) continue;
    atomic_fetch_add_explicit(slot + 1, 1, memory_order_relaxed);
    return;
  }
}

HOOK(int, http_filter_request_headers)(void *filter, const void *config, bool end) {
  const struct route *r = ENVOY(get_most_specific_route_config)(filter);
  if (!r) return CONTINUE;
  if (r->log) keep_path(filter);
  if (r->strips && !ENVOY(http_set_header)(filter, REQUEST, TEXT("x-forwarded-host"), none))
    return ENVOY(http_send_response)(filter, 503, NULL, 0, none, none), STOP; // no upstream may receive it
  uint8_t message[GP_MAX_MESSAGE];
  struct decision d;
  size_t length = write_message(filter, r, message);
  if (length > 0 && find(config, message, length, &d) && let_pass(filter, r, &d)) count_hit(r->service);
  return CONTINUE;
}

HOOK(int, http_filter_response_headers)(void *filter, const void *config, bool end) {
  const struct route *r = ENVOY(get_most_specific_route_config)(filter);
  if (r && r->strips) (void)ENVOY(http_add_header)(filter, RESPONSE, TEXT("vary"), TEXT("origin"));
  return CONTINUE;
}

// ---- The other hooks that Envoy requires ----
HOOK(const char *, program_init)(void) { return "v0.2.0"; }

HOOK(const void *, http_filter_config_new)(void *envoy, struct buffer name, struct buffer path) {
  struct config *c = NULL;
  if (path.length == 0 || path.length >= sizeof c->path || path.ptr[0] != '/' || memchr(path.ptr, 0, path.length)) return NULL;
  if ((c = calloc(1, sizeof *c))) memcpy(c->path, path.ptr, path.length);
  return c;
}
HOOK(void, http_filter_config_destroy)(const void *config) { free((void *)config); }
HOOK(const void *, http_filter_per_route_config_new)(struct buffer name, struct buffer config) {
  struct route *r = calloc(1, sizeof *r);
  if (r && !parse_route(config, r)) free(r), r = NULL;
  return r;
}
HOOK(void, http_filter_per_route_config_destroy)(const void *route) { free((void *)route); }

// A filter has no state: it is its configuration.
HOOK(const void *, http_filter_new)(const void *config, void *filter) { return config; }
HOOK(void, http_filter_destroy)(const void *filter) {}

#define PASS(hook, ...) HOOK(int, http_filter_##hook)(void *filter, const void *config __VA_ARGS__) { return CONTINUE; }
PASS(request_body, , bool end) PASS(request_trailers) PASS(response_body, , bool end) PASS(response_trailers)

// Envoy resolves these symbols when it loads the module. It calls only stream_complete and the two for the buffer.
#define IGNORE(hook, ...) HOOK(void, http_filter_##hook)(void *filter, const void *config __VA_ARGS__) {}
IGNORE(stream_complete) IGNORE(scheduled, , uint64_t id)
IGNORE(downstream_above_write_buffer_high_watermark) IGNORE(downstream_below_write_buffer_low_watermark)
IGNORE(http_stream_complete, , uint64_t id) IGNORE(http_stream_reset, , uint64_t id, int reason)
IGNORE(http_callout_done, , uint64_t id, int result, void *headers, size_t count, void *body, size_t chunks)
IGNORE(http_stream_headers, , uint64_t id, void *headers, size_t count, bool end)
IGNORE(http_stream_data, , uint64_t id, const void *data, size_t count, bool end)
IGNORE(http_stream_trailers, , uint64_t id, void *trailers, size_t count)
