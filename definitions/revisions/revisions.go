// Package revisions decides which revision of the definitions is in force where they are kept in Redis, for any
// number of gateways at once, and tells whether each gateway has verified it.
//
// A revision is a definitions file as it was applied, with a number, never changed again. All keys lie in one hash
// slot, so that a revision is stored as a whole and against the one that it was based on:
//
//	gatepost:{definitions}:newest     the number of the revision in force
//	gatepost:{definitions}:about      number → when, who, why and what changed (a hash)
//	gatepost:{definitions}:texts      number → the file (a hash)
//	gatepost:{definitions}:gateways   the gateways, scored by when they were last heard of (a sorted set)
//	gatepost:{definitions}:reports    gateway → what it serves (a hash)
//
// The channel gatepost:{definitions}:news carries the number of each new revision. Who follows also looks by itself
// every few seconds, for a notification may be lost.
//
// What cannot be read, be it Redis, the newest number or its revision, changes nothing: whoever asks is told why, and
// goes on with what it has. A user of Redis' ACL needs ~gatepost:* and &gatepost:*, and +@connection +get +set +hget
// +hset +hdel +hgetall +hkeys +zadd +zrem +zrange +zrangebyscore +eval +evalsha +time +publish +subscribe +unsubscribe.
package revisions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"gatepost/definitions"
)

// The keys, and the channel.
const (
	newestKey   = "gatepost:{definitions}:newest"
	aboutKey    = "gatepost:{definitions}:about"
	textsKey    = "gatepost:{definitions}:texts"
	gatewaysKey = "gatepost:{definitions}:gateways"
	reportsKey  = "gatepost:{definitions}:reports"
	newsChannel = "gatepost:{definitions}:news"
)

// Kept is how many revisions are kept: a new one has the oldest forgotten.
const Kept = 100

// callTimeout bounds one call.
const callTimeout = 5 * time.Second

var (
	// ErrNone says that Redis holds no revision, or not the one that was asked for.
	ErrNone = errors.New("there is no such revision in Redis")
	// ErrDamaged says that what Redis holds is no revision as it was stored.
	ErrDamaged = errors.New("what Redis holds is damaged")
	// ErrUnavailable says that Redis could not be asked.
	ErrUnavailable = errors.New("the Redis of the definitions cannot be asked")
)

// Revision is one state of the definitions.
type Revision struct {
	// Number counts the revisions, from 1.
	Number int64
	// Stored is when it was stored, by the clock of Redis. A later revision was stored later.
	Stored time.Time
	Note
	// Sum is the SHA-256 of the file, in hex.
	Sum string

	id string // tells this storing from any other
}

// Note is what its maker says of a revision.
type Note struct {
	// Who applied it, as user@host.
	Who string
	// Message is why; it may be empty.
	Message string
	// Change is what it changed, in a line.
	Change string
}

// about is a Revision as it is kept, after the milliseconds at which it was stored.
type about struct {
	ID      string `json:"id"`
	Sum     string `json:"sha256"`
	Who     string `json:"who"`
	Message string `json:"message,omitempty"`
	Change  string `json:"change,omitempty"`
}

// Store is the revisions in a Redis: one server, behind Sentinel, or a Cluster. It holds nothing itself and may be
// used by many goroutines at once.
type Store struct{ client redis.UniversalClient }

// New returns the store in the Redis of a client, which stays the caller's to close.
func New(client redis.UniversalClient) *Store { return &Store{client: client} }

// Newest returns the revision in force. The error is ErrNone, ErrDamaged or ErrUnavailable.
func (s *Store) Newest(ctx context.Context) (Revision, error) {
	r, err := s.newest(ctx)
	if errors.Is(err, ErrDamaged) {
		err = fmt.Errorf("%w (the gateways go on with what they serve; delete the key %s and apply again)", err, newestKey)
	}
	return r, err
}

func (s *Store) newest(ctx context.Context) (Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := s.client.Get(ctx, newestKey).Result()
	if err != nil {
		return Revision{}, told("reading the newest revision", err)
	}
	number, err := readNumber(text)
	if err != nil {
		return Revision{}, fmt.Errorf("reading %s: %w", newestKey, err)
	}
	r, err := s.about(ctx, number)
	if !errors.Is(err, ErrNone) {
		return r, err
	}
	// Another revision may be the newest since the number was read, or all may have been deleted.
	switch again, err := s.client.Get(ctx, newestKey).Result(); {
	case err != nil:
		return Revision{}, told("reading the newest revision", err)
	case again != text:
		return s.newest(ctx)
	}
	return Revision{}, fmt.Errorf("reading revision %d, the newest: %w: it is not there", number, ErrDamaged)
}

// About returns what is known of a revision; see Newest for the errors.
func (s *Store) About(ctx context.Context, number int64) (Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.about(ctx, number)
}

func (s *Store) about(ctx context.Context, number int64) (Revision, error) {
	kept, err := s.client.HGet(ctx, aboutKey, strconv.FormatInt(number, 10)).Result()
	if err != nil {
		return Revision{}, told(fmt.Sprintf("reading revision %d", number), err)
	}
	return readRevision(number, kept)
}

// Text returns the file of a revision as it was applied; see Newest for the errors.
func (s *Store) Text(ctx context.Context, r Revision) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := s.client.HGet(ctx, textsKey, strconv.FormatInt(r.Number, 10)).Bytes()
	err = told(fmt.Sprintf("reading revision %d", r.Number), err)
	switch {
	case errors.Is(err, ErrNone):
		return nil, fmt.Errorf("reading revision %d: %w: its file is not there", r.Number, ErrDamaged)
	case err != nil:
		return nil, err
	case sum(text) != r.Sum:
		return nil, fmt.Errorf("reading revision %d: %w: its file is not the one that was stored", r.Number, ErrDamaged)
	}
	return text, nil
}

// Load returns the definitions of a revision, by the name that [Name] gives them. An error is also a
// definitions.Problems where they break a rule of this gatepost.
func (s *Store) Load(ctx context.Context, r Revision) (*definitions.Definitions, error) {
	return s.next(ctx, nil, r)
}

// next is Load where other definitions, which may be nil, were read before.
func (s *Store) next(ctx context.Context, before *definitions.Definitions, r Revision) (*definitions.Definitions, error) {
	text, err := s.Text(ctx, r)
	if err != nil {
		return nil, err
	}
	d, err := before.Next(Name(r.Number), text)
	if err != nil {
		return nil, fmt.Errorf("reading revision %d, which `gatepost show %d` prints:\n%w", r.Number, r.Number, err)
	}
	return d, nil
}

// namePrefix begins the name of definitions out of Redis.
const namePrefix = "redis:"

// Name is what the definitions of a revision are called in problems and in the status.
func Name(number int64) string { return namePrefix + strconv.FormatInt(number, 10) }

// Number is the revision that definitions of this name are; false where they are not out of Redis.
func Number(name string) (int64, bool) {
	text, found := strings.CutPrefix(name, namePrefix)
	if !found {
		return 0, false
	}
	number, err := readNumber(text)
	return number, err == nil
}

// readNumber reads the number of a revision, in the one form in which it is written.
func readNumber(text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || number < 1 || strconv.FormatInt(number, 10) != text {
		return 0, fmt.Errorf("%w: it is not the number of a revision", ErrDamaged)
	}
	return number, nil
}

func readRevision(number int64, kept string) (Revision, error) {
	stored, text, _ := strings.Cut(kept, " ")
	ms, err := strconv.ParseInt(stored, 10, 64)
	var a about
	if err != nil || json.Unmarshal([]byte(text), &a) != nil || a.Sum == "" {
		return Revision{}, fmt.Errorf("reading revision %d: %w: it is not what gatepost writes", number, ErrDamaged)
	}
	return Revision{
		Number: number, Stored: time.UnixMilli(ms).UTC(), Sum: a.Sum, id: a.ID,
		Note: Note{Who: a.Who, Message: a.Message, Change: a.Change},
	}, nil
}

// told says in the words of this package what the driver said, of which the text alone leaves.
func told(doing string, err error) error {
	var fromServer redis.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return fmt.Errorf("%s: %w", doing, ErrNone)
	case errors.As(err, &fromServer) && strings.HasPrefix(fromServer.Error(), "WRONGTYPE"):
		return fmt.Errorf("%s: %w: %s", doing, ErrDamaged, fromServer.Error())
	}
	return fmt.Errorf("%s: %w: %s", doing, ErrUnavailable, err.Error())
}

func sum(text []byte) string {
	hash := sha256.Sum256(text)
	return hex.EncodeToString(hash[:])
}
