// Package testlog keeps what a process or a logger of a test has written.
package testlog

import (
	"fmt"
	"strings"
	"sync"
)

// Buffer is a log that can be read while it is written. The zero Buffer is empty.
type Buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Tail returns at most the last bytes of the log, for the output of a failed test.
func (b *Buffer) Tail(most int) string {
	s := b.String()
	if len(s) > most {
		return fmt.Sprintf("[%d bytes left out]\n%s", len(s)-most, s[len(s)-most:])
	}
	return s
}
