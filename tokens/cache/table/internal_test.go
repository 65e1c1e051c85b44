package table

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// TestLayoutMatchesHeader compares every number in envoy/module/table.h with the writer's.
func TestLayoutMatchesHeader(t *testing.T) {
	ours := map[string]uint64{
		"MAGIC": magic, "HEADER_WORDS": headerWords, "HEADER_MAGIC": headerMagic, "HEADER_BUCKETS": headerBuckets,
		"HEADER_SEQ": headerSeq, "HEADER_KEY0": headerKey0, "HEADER_KEY1": headerKey1, "HEADER_UNTIL_BOOT": headerUntilBoot,
		"HEADER_UNTIL_WALL": headerUntilWall, "BUCKET_SLOTS": bucketSlots, "MAX_BUCKETS": maxBuckets, "SLOT_WORDS": slotWords,
		"SLOT_SEQ": slotSeq, "SLOT_TAG0": slotTag0, "SLOT_TAG1": slotTag1, "SLOT_EXPIRES": slotExpires, "SLOT_UNTIL": slotUntil,
		"SLOT_USER": slotUser, "USER_BYTES": userBytes, "SLOT_SESSION": slotSession, "USER_WITH_SESSION": userWithSession, "RULE_BYTES": ruleBytes, "INPUTS": inputs, "MAX_MESSAGE": maxMessage,
		"MAX_LEASE": maxLease, "MAX_DECISION": maxDecision,
		"HITS_SLOTS": hitsSlots, "HITS_WORDS": hitsWords, "HITS_PROBES": hitsProbes,
	}
	text, err := os.ReadFile("../../../envoy/module/table.h")
	if err != nil {
		t.Fatal(err)
	}
	for _, define := range regexp.MustCompile(`(?m)^#define GP_(\w+) (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		theirs, err := strconv.ParseUint(define[2], 0, 64)
		if err != nil {
			t.Errorf("GP_%s is not a number: %v", define[1], err)
		}
		if mine, known := ours[define[1]]; !known || mine != theirs {
			t.Errorf("GP_%s is %s in table.h and %d here (known: %v)", define[1], define[2], mine, known)
		}
		delete(ours, define[1])
	}
	for name := range ours {
		t.Errorf("GP_%s is not in table.h", name)
	}
}

// TestSipHash checks the writer against the reference vectors of SipHash-2-4-128 (key and message
// 00 01 02 …). TestSipHashOfTheModule checks the module against the writer.
func TestSipHash(t *testing.T) {
	key := [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	for n, want := range []tag{
		{0xe6a825ba047f81a3, 0x930255c71472f66d}, {0x44af996bd8c187da, 0x45fc229b11597634}, {0xc75da4a48d227781, 0xe4ff0af6de8ba3fc},
	} {
		if got := siphash(key, []byte{0, 1, 2}[:n]); got != want {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

// The decisions about 100,000 tokens with UUIDs as users take less than 16 MiB, and nearly all of
// them have a slot at the same time.
func TestDefaultSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table")
	made, err := Create(path, Decisions, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	size := int64(0)
	for _, file := range []string{path, path + ".hits"} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if mapped := 8 * len(made.words); int64(mapped) > size {
		t.Errorf("%d bytes are mapped of a file of %d", mapped, size)
	}
	found := map[tag]bool{}
	for i := range 100_000 {
		made.Put(0, &Entry{Inputs: [4]string{strconv.Itoa(i)}, Token: sha256.Sum256([]byte(strconv.Itoa(i))), User: "3f1c9a52-7b1e-4c07-9d2f-0a6b5c4d3e2f", Expires: time.Now().Add(time.Hour)})
	}
	for slot := range made.owner {
		if at := made.place(slot); made.words[at+slotUntil] != 0 {
			found[tag{made.words[at+slotTag0], made.words[at+slotTag1]}] = true
		}
	}
	t.Logf("%d bytes, %d of 100,000 decisions found", size, len(found))
	if size >= 16<<20 || len(found) < 97_000 {
		t.Errorf("%d bytes, %d of 100,000 decisions have a slot", size, len(found))
	}
}

// Folder removes the folder of a killed process, but not that of a living one.
func TestFolderOfAKilledProcessIsRemoved(t *testing.T) {
	parent := t.TempDir()
	alive, release, err := folderIn(parent)
	if err != nil {
		t.Fatal(err)
	}
	killed, err := os.MkdirTemp(parent, filepath.Base(alive)[:len(filepath.Base(alive))-3])
	if err != nil {
		t.Fatal(err)
	}
	other, _ := os.MkdirTemp(parent, "others-")
	next, releaseNext, err := folderIn(parent)
	if err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{alive: true, killed: false, other: true, next: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if err := releaseNext(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("%d folders are left", len(left))
	}
}

// Only this user can write the hits file, and the folder's group if the folder is set-group-ID.
func TestHitsFilePermissions(t *testing.T) {
	for folder, want := range map[os.FileMode]os.FileMode{0o750: 0o600, 0o755: 0o600, 0o750 | os.ModeSetgid: 0o660} {
		dir := t.TempDir()
		if err := os.Chmod(dir, folder); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "table")
		made, err := Create(path, 8, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer made.Close()
		for file, want := range map[string]os.FileMode{path: 0o644, path + ".hits": want} {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != want {
				t.Errorf("in a folder of mode %v %s has mode %v, want %v", folder, filepath.Base(file), info.Mode(), want)
			}
		}
	}
}
