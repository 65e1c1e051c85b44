package logqueue

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
)

// queued writes so many numbered lines of 100 bytes.
func queued(t *testing.T, q *Queue, lines int) {
	t.Helper()
	for i := range lines {
		if n, err := fmt.Fprintf(q, "%099d\n", i); n != 100 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
}

func TestUnreadLogDoesNotBlockAndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe() // each write waits for a reader
		q := New(writer)
		queued(t, q, 1)
		synctest.Wait() // the first line waits to be read, all others in the queue
		const lines, most = 50_000, maxBytes / 100
		queued(t, q, lines)
		if got := q.Dropped(); got != lines-most {
			t.Errorf("%d lines dropped, want %d", got, lines-most)
		}
		go func() {
			_ = q.Close()
			_ = writer.Close()
		}()
		read := 0
		for scanner := bufio.NewScanner(reader); scanner.Scan(); read++ {
			if want := fmt.Sprintf("%099d", max(0, read-1)); scanner.Text() != want {
				t.Fatalf("line %d is %q, want %q", read, scanner.Text(), want)
			}
		}
		if read != 1+most {
			t.Errorf("%d lines written at the end, want %d", read, 1+most)
		}
	})
}

func TestUnreadLogDoesNotDelayExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		q := New(writer)
		queued(t, q, 1)
		_ = q.Close() // the clock is synctest's: this test hangs if Close waits for the line
		queued(t, q, 1)
		if got := q.Dropped(); got != 1 {
			t.Errorf("%d lines dropped after Close, want 1", got)
		}
		_ = reader.Close()
	})
}

func TestFailedWritesAreCounted(t *testing.T) {
	reader, writer := io.Pipe()
	_ = reader.CloseWithError(errors.New("nobody reads"))
	q := New(writer)
	queued(t, q, 3)
	_ = q.Close()
	if got := q.Dropped(); got != 3 {
		t.Errorf("%d lines dropped, want 3", got)
	}
}
