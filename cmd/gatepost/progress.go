package main

import (
	"fmt"
	"io"
	"time"
)

// A wait is shown after showAfter. If no person reads it, a line is printed each showEvery.
const (
	showAfter = time.Second
	showEvery = 10 * time.Second
)

// progressWidth limits a line on a terminal, which would not be replaced if it were broken into two.
const progressWidth = 79

// progress shows how a wait goes: on a terminal in one line that is replaced, else in a line now and then.
type progress struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	began, printed time.Time
	line           string // on the terminal
}

func newProgress(out io.Writer) *progress {
	return progressAt(out, isTerminal(out), time.Now)
}

func progressAt(out io.Writer, terminal bool, now func() time.Time) *progress {
	return &progress{out: out, terminal: terminal, now: now, began: now(), printed: now()}
}

// show shows the state of the wait. It is called often.
func (p *progress) show(state string) {
	waited := p.now().Sub(p.began)
	if waited < showAfter || !p.terminal && p.now().Sub(p.printed) < showEvery {
		return
	}
	p.printed = p.now()
	line := fmt.Sprintf("%s (%d s)", state, int(waited.Seconds()))
	switch {
	case !p.terminal:
		fmt.Fprintln(p.out, line)
	case line != p.line:
		if runes := []rune(line); len(runes) > progressWidth {
			line = string(runes[:progressWidth-1]) + "…"
		}
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
		p.line = line
	}
}

// end removes the line from the terminal.
func (p *progress) end() {
	if p.line != "" {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.line = ""
	}
}

// progressEvery is how often waiting shows how long it has taken.
const progressEvery = 200 * time.Millisecond

// waiting shows that a call is waited for, until stop is called.
func waiting(p *progress, state string) (stop func()) {
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer p.end()
		for {
			select {
			case <-stopped:
				return
			case <-time.After(progressEvery):
				p.show(state)
			}
		}
	}()
	return func() {
		close(stopped)
		<-ended
	}
}
