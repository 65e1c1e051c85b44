package main

import (
	"encoding/binary"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"unsafe"
)

// TestBallastTakesNoMemory reads which pages are in memory, of which the runtime may have used some before
// (Documentation/admin-guide/mm/pagemap.rst of Linux: bit 63).
func TestBallastTakesNoMemory(t *testing.T) {
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	pages, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Skip(err)
	}
	defer pages.Close()
	defer func(percent int) { debug.SetGCPercent(percent) }(debug.SetGCPercent(100))
	used := make([]byte, 2*ballastSize)
	for i := range used {
		used[i] = 1
	}
	runtime.GC()
	limitHeap()
	size := os.Getpagesize()
	flags := make([]byte, 8*len(ballast)/size)
	if _, err := pages.ReadAt(flags, 8*int64(uintptr(unsafe.Pointer(&ballast[0])))/int64(size)); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(flags); at += 8 {
		if binary.NativeEndian.Uint64(flags[at:])>>63 != 0 {
			t.Fatalf("page %d of the ballast is in memory", at/8)
		}
	}
	if got := debug.SetGCPercent(gcPercent); got != gcPercent {
		t.Errorf("the heap grows by %d %%", got)
	}
}

func TestOperatorSetsHeap(t *testing.T) {
	defer func(percent int) { debug.SetGCPercent(percent) }(debug.SetGCPercent(100))
	for _, variable := range []string{"GOGC", "GOMEMLIMIT"} {
		t.Run(variable, func(t *testing.T) {
			t.Setenv(variable, "1GiB")
			ballast = nil
			limitHeap()
			if got := debug.SetGCPercent(100); got != 100 || ballast != nil {
				t.Errorf("the heap grows by %d %%, with %d bytes of ballast", got, len(ballast))
			}
		})
	}
}
