//go:build ignore

// The table of decisions: a file in shared memory. Gatepost writes it (Go package
// tokens/cache/table), and the module in Envoy (module.c) reads it. This header is the only
// description of the layout; a test in package table reads the numbers from this file and compares
// them with the writer's, so they are plain integers.
//
// The file is an array of 64-bit words in the byte order of the machine: a header, then buckets of
// slots. Its size is exactly GP_HEADER_WORDS + buckets * GP_BUCKET_SLOTS * GP_SLOT_WORDS words and
// never changes: a new table is a new file that is renamed over the old one, so a reader that has
// mapped the old one keeps a complete file.
//
// A decision is found by a tag: SipHash-2-4 with 128 bits of output, with the key in the header, over
//
//     the rule's id (GP_RULE_BYTES), then for each of Authorization, Origin, Cookie and Sec-WebSocket-Protocol
//     the number of bytes (16 bits, little-endian) and the bytes.
//
// A header that the rule does not use, that is absent or that is empty has 0 bytes. The high 32
// bits of the first word of the tag, times the number of buckets, shifted right by 32, is the
// bucket; the decision is in any slot of it.
//
// Concurrency. There is one writer and any number of readers. Every word is written and read by one
// atomic access, so a reader never sees half a word. The header's lease (from GP_HEADER_SEQ on) and
// each slot are guarded by a sequence lock, as in Boehm, "Can seqlocks get along with programming
// language memory models?" (MSPC 2012): the writer makes the sequence odd, writes, and makes it
// even; a reader loads the sequence (acquire), the words (relaxed), then after an acquire fence the
// sequence again, and uses the words only if it was even and is unchanged. A reader does not wait:
// in doubt it asks Gatepost.

#define GP_MAGIC 0x3130454c42415447

// The header. MAGIC and BUCKETS never change.
#define GP_HEADER_WORDS 16
#define GP_HEADER_MAGIC 0
#define GP_HEADER_BUCKETS 1
#define GP_HEADER_SEQ 8
#define GP_HEADER_KEY0 9
#define GP_HEADER_KEY1 10
// The table expires at these times, in nanoseconds of CLOCK_BOOTTIME and of CLOCK_REALTIME,
// whichever comes first.
#define GP_HEADER_UNTIL_BOOT 11
#define GP_HEADER_UNTIL_WALL 12

// A bucket is GP_BUCKET_SLOTS slots. A slot with UNTIL 0 is empty.
#define GP_BUCKET_SLOTS 8
#define GP_MAX_BUCKETS 1048576

// A slot has 96 bytes. In 64 bytes a user's id could have 23, but a UUID has 36.
#define GP_SLOT_WORDS 12
#define GP_SLOT_SEQ 0
#define GP_SLOT_TAG0 1
#define GP_SLOT_TAG1 2
// The expiry of the token, in nanoseconds of CLOCK_REALTIME.
#define GP_SLOT_EXPIRES 3
// The end of the decision's TTL, in nanoseconds of CLOCK_BOOTTIME.
#define GP_SLOT_UNTIL 4
// The user's id: one byte with its length, then its bytes, then zeros.
#define GP_SLOT_USER 5
#define GP_USER_BYTES 55
// The session's id: a UUID as two numbers, the first half of its digits and the second, or zeros if
// it is not known. It is there only if the user's id has at most GP_USER_WITH_SESSION bytes: a longer
// one takes its place.
#define GP_SLOT_SESSION 10
#define GP_USER_WITH_SESSION 39

#define GP_RULE_BYTES 16
#define GP_INPUTS 4
// The maximum length of a message that a tag is computed from. Gatepost decides longer requests.
#define GP_MAX_MESSAGE 4096

// The module rejects times further in the future than Gatepost ever writes (nanoseconds).
#define GP_MAX_LEASE 2000000000
#define GP_MAX_DECISION 61000000000

// The hits are in a second file, at the table's path with ".hits" appended. The module adds to it
// and Gatepost reads it, so Envoy needs only read access to the table. The file has GP_HITS_SLOTS
// slots of two words: a service and its hits. The service is the FNV-1a hash of its name (64 bits),
// never 0; 0 marks a free slot. Starting at the slot "hash modulo GP_HITS_SLOTS", a service uses
// the first slot that is free or its own, and probes at most GP_HITS_PROBES slots. A hit without a
// slot is not counted.
#define GP_HITS_SLOTS 32768
#define GP_HITS_WORDS 2
#define GP_HITS_PROBES 256
