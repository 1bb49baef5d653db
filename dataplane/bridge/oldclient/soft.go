package oldclient

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/internal/hold"
)

// A client of the session era and its session at one stateless target: what lives nowhere but here.
type softKey struct {
	tenant string
	nonce  session.Nonce
	target string
}

// whose is the caller that a session is of, and until when it can be.
type whose struct {
	caller  string // "": anonymous
	expires time.Time
}

type softState struct {
	level    string
	uris     map[string]bool
	size     int           // bytes of all uris
	version  int           // of uris: counts their changes
	changed  chan struct{} // closed when uris change, or who is told of them; nil: nobody waits
	listened int           // the version that a listen at the target is about
	listens  chan struct{} // closed when listened changes; nil: nobody waits
	open     map[string]context.CancelCauseFunc
	asking   map[string]*question
	standing []*standing // open, the newest last
	whose    whose
	taken    int // of softStates.room
}

// idle reports whether nothing of it would be missed.
func (s *softState) idle() bool {
	return s.level == "" && len(s.uris) == 0 && len(s.open) == 0 && len(s.asking) == 0 && len(s.standing) == 0
}

// softStates are those of all sessions. One that holds nothing is forgotten.
type softStates struct {
	mu     sync.Mutex // guards what is below
	states map[softKey]*softState
	swept  time.Time
	past   *hold.Cache[pastKey, struct{}] // questions that need no answer any more
	room   *hold.Budget                   // for what outlives requests
}

type pastKey struct {
	softKey
	id string
}

func (k pastKey) size() int { return len(k.tenant) + len(k.target) + len(k.id) }

// A question is a request to the client that waits for its response.
type question struct {
	id     []byte            // raw
	answer chan *mcp.Message // holds one; nil: there is no room for it
	room   *int              // bytes that may still be held for its call; guarded by softStates.mu
}

const (
	maxSubscriptions = 1000    // of a session at one target
	maxSubscribed    = 1 << 20 // bytes of their URIs
	softSize         = 512     // bytes of what is kept of a session beside them
	subscriptionSize = 128     // and of each, beside its URI
	sweepEvery       = time.Minute
	maxAsked         = 100              // questions of one call at a time
	pastAge          = 10 * time.Minute // how long a late answer is known for one
)

func (s *softStates) stateLocked(key softKey, of whose) *softState {
	if now := time.Now(); now.Sub(s.swept) > sweepEvery {
		s.swept = now
		for k, st := range s.states {
			if now.After(st.whose.expires) && len(st.open) == 0 && len(st.standing) == 0 {
				s.room.Give(k.tenant, st.whose.caller, st.taken)
				delete(s.states, k)
			}
		}
	}
	st := s.states[key]
	if st == nil {
		st = &softState{whose: of}
		s.states[key] = st
	}
	return st
}

func (s *softStates) settleLocked(key softKey) {
	if st := s.states[key]; st != nil && st.idle() {
		delete(s.states, key)
	}
}

// weighLocked takes the room that a state's level and subscriptions need, or gives back what they need no more; false if there is none.
func (s *softStates) weighLocked(key softKey, st *softState) bool {
	need := 0
	if st.level != "" || len(st.uris) > 0 {
		need = softSize + st.size + subscriptionSize*len(st.uris)
	}
	if need > st.taken && !s.room.Take(key.tenant, st.whose.caller, need-st.taken) {
		return false
	}
	if need < st.taken {
		s.room.Give(key.tenant, st.whose.caller, st.taken-need)
	}
	st.taken = need
	return true
}

func (s *softStates) level(key softKey) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[key]; st != nil {
		return st.level
	}
	return ""
}

// setLevel reports whether there is room to keep the level.
func (s *softStates) setLevel(key softKey, level string, of whose) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stateLocked(key, of)
	defer s.settleLocked(key)
	before := st.level
	if st.level = level; !s.weighLocked(key, st) {
		st.level = before
		return false
	}
	return true
}

// subscribe adds or removes a resource; false if there are too many.
func (s *softStates) subscribe(key softKey, uri string, on bool, of whose) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stateLocked(key, of)
	defer s.settleLocked(key)
	if on == st.uris[uri] {
		return true
	}
	if on && (len(st.uris) >= maxSubscriptions || st.size+len(uri) > maxSubscribed) {
		return false
	}
	if st.uris == nil {
		st.uris = map[string]bool{}
	}
	drop := func() {
		delete(st.uris, uri)
		st.size -= len(uri)
	}
	if on {
		st.uris[uri] = true
		st.size += len(uri)
	} else {
		drop()
	}
	if !s.weighLocked(key, st) {
		drop()
		return false
	}
	st.version++
	st.changeLocked()
	return true
}

// changeLocked tells who listens that uris are others now, or that another stands.
func (s *softState) changeLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// subscriptions returns the resources of now, which version of them that is, and a channel that is closed when they change. told
// reports whether this stream is the one that hears of them: the newest, since a session has each message on one stream alone
// (2025-11-25, transports, Multiple Connections).
func (s *softStates) subscriptions(key softKey, of *standing) (uris []string, version int, told bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[key]
	if st == nil {
		return nil, 0, true, nil
	}
	for uri := range st.uris {
		uris = append(uris, uri)
	}
	if st.changed == nil {
		st.changed = make(chan struct{})
	}
	return uris, st.version, st.newestLocked() == of, st.changed
}

func (s *softState) newestLocked() *standing {
	if len(s.standing) == 0 {
		return nil
	}
	return s.standing[len(s.standing)-1]
}

// heard notes that what changes of a version's resources is told on a standing stream from now on.
func (s *softStates) heard(key softKey, version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[key]
	if st == nil || version <= st.listened {
		return
	}
	st.listened = version
	if st.listens != nil {
		close(st.listens)
		st.listens = nil
	}
}

// awaitHeard waits until a standing stream hears of all that is subscribed to now, if one is open.
func (s *softStates) awaitHeard(ctx context.Context, key softKey) {
	ctx, cancel := context.WithTimeout(ctx, hearTime)
	defer cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[key]
	for version := st.versionNow(); st != nil && len(st.standing) > 0 && st.listened < version && ctx.Err() == nil; st = s.states[key] {
		if st.listens == nil {
			st.listens = make(chan struct{})
		}
		listens := st.listens
		s.mu.Unlock()
		select {
		case <-listens:
		case <-ctx.Done():
		}
		s.mu.Lock()
	}
}

// hearTime bounds how long a subscription waits for the target's listen. One that begins later tells what it has missed.
const hearTime = 5 * time.Second

func (s *softState) versionNow() int {
	if s == nil {
		return 0
	}
	return s.version
}

// stand notes that a standing stream is open, until the function that it returns is called. others reports whether it takes over
// from one that may have been told something that this one was not.
func (s *softStates) stand(key softKey, of *standing, owner whose) (leave func(), others bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stateLocked(key, owner)
	others = len(st.standing) > 0
	st.standing = append(st.standing, of)
	st.changeLocked()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if st := s.states[key]; st != nil {
			newest := st.newestLocked()
			st.standing = slices.DeleteFunc(st.standing, func(open *standing) bool { return open == of })
			if newest == of {
				st.changeLocked()
			}
		}
		s.settleLocked(key)
	}, others
}

// begin notes that a request is open, so that it can be cancelled, until the function that it returns is called.
func (s *softStates) begin(key softKey, id []byte, cancel context.CancelCauseFunc, of whose) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stateLocked(key, of)
	if st.open == nil {
		st.open = map[string]context.CancelCauseFunc{}
	}
	st.open[string(id)] = cancel
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if st := s.states[key]; st != nil {
			delete(st.open, string(id))
		}
		s.settleLocked(key)
	}
}

// cancel ends an open request. An id that names none is ignored, as the protocol has it.
func (s *softStates) cancel(key softKey, id []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[key]; st != nil {
		if cancel := st.open[string(id)]; cancel != nil {
			cancel(errCancelled)
		}
	}
}

// ask makes a question with an id that no other of the session has. Those of a call share room for their answers.
func (s *softStates) ask(key softKey, room *int, of whose) *question {
	q := &question{id: strconv.AppendQuote(nil, newID()), answer: make(chan *mcp.Message, 1), room: room}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stateLocked(key, of)
	if st.asking == nil {
		st.asking = map[string]*question{}
	}
	st.asking[string(q.id)] = q
	return q
}

func (s *softStates) rememberLocked(k pastKey) {
	s.past.Put(k.tenant, k, struct{}{}, k.size(), time.Now().Add(pastAge))
}

func (s *softStates) withdraw(key softKey, q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[key]; st != nil {
		delete(st.asking, string(q.id))
	}
	s.rememberLocked(pastKey{key, string(q.id)})
	s.settleLocked(key)
}

// answer brings a client's response to the call that asked; false if none did. One that comes twice, or when its call does not wait
// any more, is no mistake of the client's, and dropped: some take an error for the end of their session.
func (s *softStates) answer(key softKey, m *mcp.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var q *question
	if st := s.states[key]; st != nil {
		q = st.asking[string(m.RawID())]
		delete(st.asking, string(m.RawID()))
	}
	if q == nil {
		_, past := s.past.Get(key.tenant, pastKey{key, string(m.RawID())})
		return past
	}
	s.rememberLocked(pastKey{key, string(q.id)})
	if *q.room -= len(m.Body); *q.room < 0 {
		q.answer <- nil
		return true
	}
	own := *m
	own.Body = bytes.Clone(m.Body)
	q.answer <- &own
	return true
}

// end forgets a session, and cancels what it has open.
func (s *softStates) end(key softKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.states[key]
	if st == nil {
		return
	}
	for _, cancel := range st.open {
		cancel(errCancelled)
	}
	st.level, st.uris, st.size = "", nil, 0
	s.weighLocked(key, st)
	st.version++
	st.changeLocked()
	s.settleLocked(key)
}

func newID() string { return "sluice-" + rand.Text() }
