package rollout

import (
	"context"
	"log/slog"
	"time"

	"gatepost/definitions"
)

// saver saves definitions in a goroutine of its own, so that a disk that hangs holds up nothing else.
type saver struct {
	lastGood LastGood
	log      *slog.Logger
	next     chan *definitions.Definitions // holds at most one: the newest that is not saved yet
}

func newSaver(lastGood LastGood, log *slog.Logger) *saver {
	return &saver{lastGood: lastGood, log: log, next: make(chan *definitions.Definitions, 1)}
}

// save replaces what was still to be saved. It does not block. Only one goroutine at a time may call it.
func (s *saver) save(d *definitions.Definitions) {
	select {
	case <-s.next:
	default:
	}
	s.next <- d
}

// run saves until ctx ends and nothing is left.
func (s *saver) run(ctx context.Context) {
	for {
		select {
		case d := <-s.next:
			s.write(d)
			continue
		default:
		}
		select {
		case d := <-s.next:
			s.write(d)
		case <-ctx.Done():
			return
		}
	}
}

func (s *saver) write(d *definitions.Definitions) {
	if err := s.lastGood.Save(d); err != nil {
		s.log.Error("saving the last good definitions failed", "error", err)
	}
	freeMemory()
}

// saveTimeout bounds how long a disk that hangs can delay the end of the process.
const saveTimeout = 5 * time.Second

// await waits until all is saved. What is not on the disk by then is the former version, which is whole.
func (s *saver) await(saved <-chan struct{}) {
	select {
	case <-saved:
	case <-time.After(saveTimeout):
		s.log.Error("the last good definitions are not saved: the disk does not answer")
	}
}
