// Package revisions decides which revision of the definitions in Redis is in force, for any number of gateways, and
// reports whether each gateway has verified it.
//
// A revision is a definitions file as it was applied, with a number. It is immutable. All keys are in one hash slot, so
// that a revision is stored atomically, and only if the one that it is based on is still the newest:
//
//	gatepost:{definitions}:newest     the number of the revision in force
//	gatepost:{definitions}:about      number → when, by whom, why and what changed (a hash)
//	gatepost:{definitions}:texts      number → the file (a hash)
//	gatepost:{definitions}:gateways   the gateways, scored by the time of their last report (a sorted set)
//	gatepost:{definitions}:reports    gateway → what it serves (a hash)
//
// The channel gatepost:{definitions}:news carries the number of each new revision. A [Follower] also polls every few
// seconds, since a notification can be lost.
//
// If Redis, the newest number or its revision cannot be read, the caller gets an error that names the reason, and keeps
// what it serves. A user of Redis' ACL needs ~gatepost:* and &gatepost:*, and +@connection +get +set +hget
// +hset +hdel +hgetall +hkeys +zadd +zrem +zrange +zrangebyscore +eval +evalsha +time +publish +subscribe +unsubscribe.
package revisions

import (
	"context"
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

// Kept is how many revisions are kept. A new one removes the oldest.
const Kept = 100

// callTimeout limits one call.
const callTimeout = 5 * time.Second

var (
	// ErrNone reports that Redis has no revision, or not the requested one.
	ErrNone = errors.New("there is no such revision in Redis")
	// ErrDamaged reports that the value in Redis is not a revision as it was stored.
	ErrDamaged = errors.New("what Redis holds is damaged")
	// ErrUnavailable reports that Redis did not answer.
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

	id string // unique to the call that stored it
}

// Note describes a revision.
type Note struct {
	// Who applied it, as user@host.
	Who string
	// Message is the reason; it may be empty.
	Message string
	// Change is a summary of the change, in one line.
	Change string
}

// about is a Revision as it is stored, after the time of storing in milliseconds.
type about struct {
	ID      string `json:"id"`
	Sum     string `json:"sha256"`
	Who     string `json:"who"`
	Message string `json:"message,omitempty"`
	Change  string `json:"change,omitempty"`
}

// Store is the revisions in a Redis: one server, behind Sentinel, or a Cluster. It has no state of its own and is safe
// for concurrent use.
type Store struct {
	client  redis.UniversalClient
	address string
}

// Config is what a [Store] needs.
type Config struct {
	// Client is the Redis with the revisions. The caller closes it. Required.
	Client redis.UniversalClient
	// Address names it in errors. It may be empty.
	Address string
}

// New returns the store in a Redis, to which it does not connect yet.
func New(config Config) (*Store, error) {
	if config.Client == nil {
		return nil, errors.New("revisions: no Client")
	}
	return &Store{config.Client, config.Address}, nil
}

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
		return Revision{}, s.wrapped("reading the newest revision", err)
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
		return Revision{}, s.wrapped("reading the newest revision", err)
	case again != text:
		return s.newest(ctx)
	}
	return Revision{}, fmt.Errorf("reading revision %d, the newest: %w: it is not there", number, ErrDamaged)
}

// About returns a revision; see Newest for the errors.
func (s *Store) About(ctx context.Context, number int64) (Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.about(ctx, number)
}

func (s *Store) about(ctx context.Context, number int64) (Revision, error) {
	kept, err := s.client.HGet(ctx, aboutKey, strconv.FormatInt(number, 10)).Result()
	if err != nil {
		return Revision{}, s.wrapped(fmt.Sprintf("reading revision %d", number), err)
	}
	return readRevision(number, kept)
}

// Text returns the file of a revision as it was applied; see Newest for the errors.
func (s *Store) Text(ctx context.Context, r Revision) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	text, err := s.client.HGet(ctx, textsKey, strconv.FormatInt(r.Number, 10)).Bytes()
	err = s.wrapped(fmt.Sprintf("reading revision %d", r.Number), err)
	switch {
	case errors.Is(err, ErrNone):
		return nil, fmt.Errorf("reading revision %d: %w: its file is not there", r.Number, ErrDamaged)
	case err != nil:
		return nil, err
	case definitions.Hash(text) != r.Sum:
		return nil, fmt.Errorf("reading revision %d: %w: its file is not the one that was stored", r.Number, ErrDamaged)
	}
	return text, nil
}

// Load returns the definitions of a revision, with the name of [Name]. If they are not valid for this version of
// Gatepost, the error is also a definitions.Problems.
func (s *Store) Load(ctx context.Context, r Revision) (*definitions.Definitions, error) {
	return s.next(ctx, nil, r)
}

// next is Load after other definitions were read; before may be nil.
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

// namePrefix is the prefix of the names of definitions from Redis.
const namePrefix = "redis:"

// Name returns the name of the definitions of a revision in problems and in the status.
func Name(number int64) string { return namePrefix + strconv.FormatInt(number, 10) }

// Number returns the revision of definitions with this name, and false if they are not from Redis.
func Number(name string) (int64, bool) {
	text, found := strings.CutPrefix(name, namePrefix)
	if !found {
		return 0, false
	}
	number, err := readNumber(text)
	return number, err == nil
}

// readNumber reads the number of a revision. It accepts only the form in which it is written.
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

// wrapped returns an error of this package for an error of the driver, of which it keeps the text alone.
func (s *Store) wrapped(doing string, err error) error {
	var fromServer redis.Error
	if s.address != "" {
		doing += " in " + s.address
	}
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
