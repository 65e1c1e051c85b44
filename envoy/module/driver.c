//go:build ignore

// The unit driver: module.c without Envoy. It simulates one HTTP stream and has its own clock,
// which the tests of package table set. It reads one command per line and answers each with a line:
//
//     clock BOOT WALL              sets the clocks, in nanoseconds                        ok
//                                  (before that they are the machine's)
//     config PATH                  the listener's configuration                           ok | refused
//     route TEXT                   the route's configuration                              ok | refused
//     request NAME=HEX...          a request with these headers, values in hex            hit | miss | the status of
//                                                                                         a refusal, then NAME=HEX...,
//                                  (@session and @path are those of the access log)       @session=HEX, @path=HEX
//                                                                                         if there are any
//     early NAME=HEX...            the headers of a request before its route is found     NAME=HEX...
//     fail NAME                    from now on no header of this name can be removed         ok
//                                  (a request with the header of scopes is then refused)
//     then WORD                    the next reading of a clock adds 2 to this word        ok
//                                  of the table, as a writer would
//     siphash HEX                  the tag of a message, under the key 00 01 … 0f         HEX
//
// The sanitizers, valgrind and the fuzz target run it too.
#define GP_CLOCK driver_clock
#define _GNU_SOURCE
#include <inttypes.h>
#include <time.h>
#include <sys/mman.h>
static int driver_clock(clockid_t clock, struct timespec *t);
static void *driver_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
static int driver_munmap(void *at, size_t bytes);
#define mmap driver_mmap
#define munmap driver_munmap
#include "module.c"
#undef mmap
#undef munmap
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

#define ROOM 80

static struct { char name[64]; char *value; size_t length; } headers[ROOM];
static size_t count;
static int64_t boot, wall;
static bool marked;
static int varies; // the lines of Vary that the response got
static char kept[64]; // the name of the header that cannot be removed
static int counted; // how often the module counted the headers of an early request
static int responded; // the status of the module's own response
static struct { const char *key, *name; char value[2048]; size_t length; } logged[] = {
    {.key = "hit_session", .name = "@session"}, {.key = "gatepost.path", .name = "@path"}};
static const void *config, *route;

static long word = -1; // of the table, that the next reading of a clock changes

static void write_word(const char *path) {
  uint64_t value;
  int fd = open(path, O_RDWR);
  if (pread(fd, &value, sizeof value, 8 * word) != sizeof value) abort();
  value += 2;
  if (pwrite(fd, &value, sizeof value, 8 * word) != sizeof value) abort();
  close(fd);
  word = -1;
}

static int driver_clock(clockid_t clock, struct timespec *t) {
  if (word >= 0) write_word(((const struct config *)config)->path);
  if (boot == 0) return clock_gettime(clock, t);
  int64_t ns = clock == CLOCK_BOOTTIME ? boot : wall;
  t->tv_sec = ns / 1000000000, t->tv_nsec = ns % 1000000000;
  return 0;
}

// driver_mmap maps a file so that a read beyond its end is detected: the sanitizer reports one in the rest of the last
// page, and after that is a page without access.
static void *driver_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), rest = -bytes % page;
  char *room = mmap(NULL, bytes + rest + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return room;
  if (mmap(room, bytes, protection, flags | MAP_FIXED, fd, offset) == MAP_FAILED) abort();
  ASAN_POISON_MEMORY_REGION(room + bytes, rest);
  return room;
}

static int driver_munmap(void *at, size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), rest = -bytes % page;
  ASAN_UNPOISON_MEMORY_REGION((char *)at + bytes, rest);
  return munmap(at, bytes + rest + page);
}

// ---- Envoy's half ----

const void *ENVOY(get_most_specific_route_config)(void *filter) { return route; }

bool ENVOY(http_set_header)(void *filter, int map, struct buffer name, struct buffer value) {
  size_t left = 0;
  if (!value.ptr && strlen(kept) == name.length && memcmp(kept, name.ptr, name.length) == 0) return false;
  for (size_t i = 0; i < count; i++) {
    if (strlen(headers[i].name) == name.length && memcmp(headers[i].name, name.ptr, name.length) == 0) free(headers[i].value);
    else headers[left++] = headers[i];
  }
  count = left;
  return !value.ptr || ENVOY(http_add_header)(filter, map, name, value);
}

bool ENVOY(http_add_header)(void *filter, int map, struct buffer name, struct buffer value) {
  if (map == RESPONSE) {
    varies += name.length == 4 && memcmp(name.ptr, "vary", 4) == 0;
    return true;
  }
  if (count == ROOM || name.length >= sizeof headers->name) abort();
  memcpy(headers[count].name, name.ptr, name.length);
  headers[count].name[name.length] = 0;
  headers[count].value = malloc(value.length ? value.length : 1);
  if (!headers[count].value) abort();
  memcpy(headers[count].value, value.ptr, value.length);
  headers[count++].length = value.length;
  return true;
}

void ENVOY(http_send_response)(void *filter, uint32_t status, struct header *all, size_t n, struct buffer body, struct buffer details) {
  responded = (int)status;
}

size_t ENVOY(http_get_headers_size)(void *filter, int map) { return count; }

bool ENVOY(http_get_headers)(void *filter, int map, struct header *all) {
  for (size_t i = 0; i < count; i++) {
    all[i].name = (struct buffer){headers[i].name, strlen(headers[i].name)};
    all[i].value = (struct buffer){headers[i].value, headers[i].length};
  }
  return true;
}

size_t ENVOY(early_header_mutation_get_headers_size)(void *request) {
  if (++counted > 4 * ROOM) exit(1); // the module would never end
  return count;
}
bool ENVOY(early_header_mutation_get_headers)(void *request, struct header *all) {
  return ENVOY(http_get_headers)(request, REQUEST, all);
}
bool ENVOY(early_header_mutation_set_header)(void *request, struct buffer name, struct buffer value) {
  return ENVOY(http_set_header)(request, REQUEST, name, value);
}
bool ENVOY(early_header_mutation_remove_header)(void *request, struct buffer name) {
  return ENVOY(http_set_header)(request, REQUEST, name, none), true; // Envoy's does not return whether there was one
}

static void keep(struct buffer key, struct buffer value) {
  for (size_t i = 0; i < sizeof logged / sizeof *logged; i++) {
    if (key.length != strlen(logged[i].key) || memcmp(key.ptr, logged[i].key, key.length) != 0) continue;
    if (value.length > sizeof logged->value) abort();
    logged[i].length = value.length;
    if (value.length > 0) memcpy(logged[i].value, value.ptr, value.length); // of a request without a path it is NULL
  }
}

// The user in the mark must be that of the header.
void ENVOY(http_set_dynamic_metadata_string_batch)(void *filter, struct buffer space, const struct header *all, size_t n) {
  for (size_t i = 0; i < n; i++) {
    keep(all[i].name, all[i].value);
    if (all[i].name.length != 3 || memcmp(all[i].name.ptr, "hit", 3) != 0) continue;
    struct buffer value = all[i].value;
    for (size_t h = 0; h < count; h++)
      marked |= headers[h].length == value.length && memcmp(headers[h].value, value.ptr, value.length) == 0;
    if (!marked) abort();
  }
}

bool ENVOY(http_set_filter_state_bytes)(void *filter, struct buffer key, struct buffer value) {
  keep(key, value);
  return true;
}

// ---- Commands ----

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

// unhex decodes a hex text in place and returns its length. sscanf would measure the rest of the text for each byte.
static size_t unhex(char *text) {
  size_t n = 0;
  for (; digit(text[2 * n]) >= 0 && digit(text[2 * n + 1]) >= 0; n++)
    text[n] = (char)(digit(text[2 * n]) << 4 | digit(text[2 * n + 1]));
  return n;
}

static void print_hex(const char *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) printf("%02x", (unsigned char)bytes[i]);
}

// exactly copies a text into a buffer of the same size, so that the sanitizers detect reads beyond
// its end.
static struct buffer exactly(const char *text, size_t length) {
  char *copy = malloc(length ? length : 1);
  if (!copy) abort();
  memcpy(copy, text, length);
  return (struct buffer){copy, length};
}

static void clear_headers(void) {
  while (count > 0) free(headers[--count].value);
}

static void read_headers(char *fields) {
  clear_headers();
  for (char *field = strtok(fields, " "); field && count < ROOM - 2; field = strtok(NULL, " ")) {
    char *value = strchr(field, '=');
    if (!value || (size_t)(value - field) >= sizeof headers->name) continue;
    *value++ = 0;
    strcpy(headers[count].name, field);
    headers[count].length = unhex(value);
    headers[count].value = (char *)exactly(value, headers[count].length).ptr;
    count++;
  }
}

static void print_headers(void) {
  for (size_t i = 0; i < count; i++) {
    printf(" %s=", headers[i].name);
    print_hex(headers[i].value, headers[i].length);
  }
}

static void early(char *fields) {
  read_headers(fields);
  counted = 0;
  const void *names = envoy_dynamic_module_on_early_header_mutation_config_new(NULL, TEXT("gatepost"), none);
  if (!names || !envoy_dynamic_module_on_early_header_mutation_mutate(names, NULL)) abort();
  envoy_dynamic_module_on_early_header_mutation_config_destroy(names);
  printf("ok");
  print_headers();
  printf("\n");
}

static void request(char *fields) {
  read_headers(fields);
  marked = false, varies = 0, responded = 0;
  for (size_t i = 0; i < sizeof logged / sizeof *logged; i++) logged[i].length = 0;
  const void *filter = envoy_dynamic_module_on_http_filter_new(config, NULL);
  int status = envoy_dynamic_module_on_http_filter_request_headers(NULL, filter, true);
  if ((status == STOP) != (responded != 0)) abort();
  envoy_dynamic_module_on_http_filter_response_headers(NULL, filter, true);
  if (varies != (route && ((const struct route *)route)->strips)) abort();
  envoy_dynamic_module_on_http_filter_stream_complete();
  envoy_dynamic_module_on_http_filter_destroy(filter);
  if (responded) printf("%d", responded);
  else printf(marked ? "hit" : "miss");
  print_headers();
  for (size_t i = 0; i < sizeof logged / sizeof *logged; i++)
    if (logged[i].length > 0) printf(" %s=", logged[i].name), print_hex(logged[i].value, logged[i].length);
  printf("\n");
}

static void configure(const char *path) {
  if (config) envoy_dynamic_module_on_http_filter_config_destroy(config);
  struct buffer text = exactly(path, strlen(path));
  config = envoy_dynamic_module_on_http_filter_config_new(NULL, TEXT("gatepost"), text);
  free((void *)text.ptr);
  printf(config ? "ok\n" : "refused\n");
}

// set_route creates the new route before it destroys the old one, as Envoy does.
static void set_route(const char *line) {
  struct buffer text = exactly(line, strlen(line));
  const void *next = envoy_dynamic_module_on_http_filter_per_route_config_new(TEXT("gatepost"), text);
  free((void *)text.ptr);
  if (route) envoy_dynamic_module_on_http_filter_per_route_config_destroy(route);
  route = next;
  printf(route ? "ok\n" : "refused\n");
}

static void print_siphash(char *hex) {
  const uint64_t key[2] = {0x0706050403020100, 0x0f0e0d0c0b0a0908};
  uint64_t tag[2];
  gp_siphash(key, (const uint8_t *)hex, unhex(hex), tag);
  print_hex((const char *)tag, sizeof tag);
  printf("\n");
}

int main(void) {
  char *line = NULL;
  size_t room = 0;
  while (getline(&line, &room, stdin) > 0) {
    line[strcspn(line, "\n")] = 0;
    char *rest = strchr(line, ' ');
    rest = rest ? rest + 1 : line + strlen(line);
    if (strncmp(line, "clock ", 6) == 0) printf(sscanf(rest, "%" SCNd64 " %" SCNd64, &boot, &wall) == 2 ? "ok\n" : "refused\n");
    else if (strncmp(line, "config ", 7) == 0) configure(rest);
    else if (strncmp(line, "route ", 6) == 0) set_route(rest);
    else if (strncmp(line, "request", 7) == 0 && config) request(rest);
    else if (strncmp(line, "early", 5) == 0) early(rest);
    else if (strncmp(line, "fail ", 5) == 0) printf(snprintf(kept, sizeof kept, "%s", rest) < (int)sizeof kept ? "ok\n" : "refused\n");
    else if (strncmp(line, "then ", 5) == 0 && config) word = atol(rest), printf("ok\n");
    else if (strncmp(line, "siphash", 7) == 0) print_siphash(rest);
    else printf("refused\n");
    fflush(stdout);
  }
  clear_headers();
  free(line);
  if (route) envoy_dynamic_module_on_http_filter_per_route_config_destroy(route);
  if (config) envoy_dynamic_module_on_http_filter_config_destroy(config);
  unmap();
  return 0;
}
