package upstream

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

const (
	handshakeTime = 60 * time.Second       // of our own initialize; a package runner may have to download first
	settled       = 30 * time.Second       // a channel that lived so long did not fail at its start
	shortWait     = 500 * time.Millisecond // between starts: waited for; a longer one is answered with 503
	deadKept      = time.Minute            // a dead session's backoff is remembered
)

func newSession(s *sessions, id, whose string) *session {
	return &session{s: s, id: id, whose: whose, turn: make(chan struct{}, 1)}
}

// session returns a caller's session by id; if it is not known, a new one without a channel, where make and the bound allow it. Nil for one of
// another caller: that ids are sealed is no reason to believe them, for each proxy of the group can seal them.
func (s *sessions) session(id, whose string, make bool) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn := s.byID[id]
	if sn == nil && make && !s.closed && (s.most == 0 || len(s.byID) < s.most) {
		sn = newSession(s, id, whose)
		if s.shared { // it has no channel of its own that would be idle one day
			sn.stop = time.AfterFunc(s.idle, sn.check)
		}
		s.byID[id] = sn
	}
	if sn != nil && sn.whose != whose {
		return nil
	}
	if sn != nil {
		sn.used = time.Now()
	}
	return sn
}

func (s *sessions) sharedSession() *session { return s.single(&s.one, true) }
func (s *sessions) looseSession() *session  { return s.single(&s.outside, true) }

func (s *sessions) single(at **session, shared bool) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *at == nil {
		*at = newSession(s, "", "")
		(*at).shared = shared
	}
	return *at
}

// forgetEmpty drops a session that never had a channel.
func (s *sessions) forgetEmpty(sn *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[sn.id] == sn && sn.channel() == nil {
		delete(s.byID, sn.id)
	}
}

// end ends a caller's session for good, and reports whether there was one.
func (s *sessions) end(id, whose string) bool {
	s.mu.Lock()
	sn := s.byID[id]
	if sn == nil || sn.whose != whose {
		s.mu.Unlock()
		return false
	}
	delete(s.byID, id)
	one := s.one
	s.mu.Unlock()
	if one != nil {
		if ch := one.channel(); ch != nil {
			ch.forget(id)
		}
	}
	sn.discard(ErrClosed)
	return true
}

// channel is the session's channel if there is one, living or dead.
func (sn *session) channel() *channel {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return sn.ch
}

// live returns the session's living channel, and makes it if it can: renewed then says so. A nil channel without an
// answer means that the session is gone.
func (sn *session) live(ctx context.Context, o *owned, r *Request) (ch *channel, renewed bool, res *Response, err error) {
	if sn.s.shared && !sn.shared {
		return sn.s.sharedSession().live(ctx, o, r)
	}
	if ch := sn.channel(); ch != nil && ch.ended() == nil {
		return ch, false, nil, nil
	}
	init := r.Initialize
	sn.mu.Lock()
	first := sn.init == nil
	sn.mu.Unlock()
	loose := sn == sn.s.loosePeek()
	switch {
	case loose:
		init = nil
	case sn.shared:
		if init, err = sharedInitialize(r.Initialize); err != nil {
			return nil, false, nil, &Error{Op: "start", Err: err}
		}
	case init == nil:
		return nil, false, nil, nil
	}
	handshake := func(ch *channel) error { return sn.greet(ctx, ch, init, r) }
	if loose {
		handshake = func(*channel) error { return nil }
	}
	ch, res, err = sn.start(ctx, o, r, handshake)
	if ch == nil {
		sn.s.forgetEmpty(sn)
	}
	var own *Error
	if errors.As(err, &own) {
		own.Sent = false // the session was being made; the request itself never left
	}
	return ch, ch != nil && !loose && !(sn.shared && first), res, err
}

func (s *sessions) loosePeek() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outside
}

// sharedInitialize is what a shared process is told: nobody's capabilities, for it can ask nobody.
func sharedInitialize(client []byte) ([]byte, error) {
	version := string(mcp.V20251125)
	if m, err := mcp.Scan(client, mcp.Limits{}); err == nil && m.Version.IsString() {
		version = m.Version.String()
	}
	params := append([]byte(`{"protocolVersion":`), mcp.AppendString(nil, version)...)
	params = append(params, `,"capabilities":{},"clientInfo":{"name":"sluice","version":"1"}}`...)
	return mcp.AppendRequest(nil, []byte("0"), "initialize", params), nil
}

// greet says initialize in the session's name and keeps the result.
func (sn *session) greet(ctx context.Context, ch *channel, init []byte, r *Request) error {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTime, ErrTimeout)
	defer cancel()
	m, err := mcp.Scan(init, mcp.Limits{})
	if err != nil || m.Method != "initialize" || m.Kind != mcp.Request {
		return errors.New("the session's initialize request cannot be read")
	}
	k, msg, err := ch.open(&m, sn.id)
	if err != nil {
		return err
	}
	if res, err := ch.pipe.send(ctx, msg, r); err != nil {
		return err
	} else if res != nil {
		res.Body.Close()
		return errors.New("the target answered initialize with status " + http.StatusText(res.Status))
	}
	for {
		msg, last, err := k.out.next(ctx)
		if err != nil {
			ch.leave(k)
			return err
		}
		if !last {
			continue // what it says before it is asked for anything
		}
		answer, err := mcp.Scan(msg, ch.lim)
		if err != nil || !answer.Result.Present() {
			return errors.New("the target refused to initialize")
		}
		sn.mu.Lock()
		sn.init = append([]byte(nil), answer.Result.Of(msg)...)
		sn.mu.Unlock()
		break
	}
	_, err = ch.pipe.send(ctx, mcp.AppendNotification(nil, "notifications/initialized", nil), r)
	return err
}

// start makes the session's channel, one caller at a time. handshake is said over it before others may use it.
func (sn *session) start(ctx context.Context, o *owned, r *Request, handshake func(*channel) error) (*channel, *Response, error) {
	select {
	case sn.turn <- struct{}{}:
		defer func() { <-sn.turn }()
	case <-ctx.Done():
		return nil, nil, &Error{Op: "start", Err: context.Cause(ctx)}
	}
	if ch := sn.channel(); ch != nil {
		why := ch.ended()
		if why == nil {
			return ch, nil, nil // another caller was first
		}
		sn.back.note(ch.started, why)
	}
	id := requestID(r)
	for _, b := range []*backoff{&sn.back, &sn.s.starts} {
		wait, why := b.wait()
		if wait > shortWait {
			// Why may name addresses, which are not the client's to know: the target's health has it, from the attempt itself.
			sn.s.log.Debug("the target is not started yet", "wait", wait, "err", why)
			return nil, unavailable(id, wait, "the target does not run; the next start is in %s", wait.Round(time.Millisecond)), nil
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, nil, &Error{Op: "start", Err: err}
		}
	}
	ch := sn.s.takeSpare(sn)
	if ch == nil {
		ch = newChannel(sn.s.cfg, sn.s.log, sn.shared)
		ch.kept = &sn.s.kept
		err := sn.s.open(ctx, o, r, ch)
		var full *slotsError
		if errors.As(err, &full) && sn.s.evictLoose() {
			err = sn.s.open(ctx, o, r, ch)
		}
		if err != nil {
			if errors.As(err, &full) {
				res := unavailable(id, 5*time.Second, "%s", full.Error())
				res.Full = true
				return nil, res, nil
			}
			sn.failed(ctx, err)
			return nil, nil, startError(err)
		}
	}
	err := handshake(ch)
	if err == nil {
		err = ch.ended()
	}
	if err == nil {
		err = sn.adopt(ch)
	}
	if err != nil {
		if why := ch.ended(); why != nil {
			err = why // better than "closed"
		}
		sn.s.goClose(ch)
		sn.failed(ctx, err)
		return nil, nil, startError(err)
	}
	sn.s.starts.ok()
	return ch, nil, nil
}

// takeSpare gives a session the process that was asked server/discover and is of the session era: nothing has
// happened to it since, and it may be the only one that the target may have.
func (s *sessions) takeSpare(taker *session) *channel {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.outside
	if out == nil || out == taker {
		return nil
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	ch := out.ch
	if ch == nil || !ch.spare() {
		return nil
	}
	out.stop.Stop()
	out.ch, out.stop = nil, nil
	ch.shared.Store(taker.shared)
	return ch
}

// evictLoose makes room: the process for messages without a session goes if it has nothing to do.
func (s *sessions) evictLoose() bool {
	out := s.looseSession()
	out.mu.Lock()
	defer out.mu.Unlock()
	if out.ch == nil || !out.ch.retire(0) {
		return false
	}
	out.stop.Stop()
	s.goClose(out.ch)
	out.ch, out.stop = nil, nil
	return true
}

// startError keeps an error's own kind. What a request asks for was not done: only the session was being made.
func startError(err error) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	return &Error{Op: "start", Err: err}
}

// failed counts a start that did not work out, unless its caller left.
func (sn *session) failed(ctx context.Context, err error) {
	if ctx.Err() == nil {
		sn.s.starts.failed(err)
	}
}

// adopt makes ch the session's channel.
func (sn *session) adopt(ch *channel) error {
	s := sn.s
	s.mu.Lock()
	defer s.mu.Unlock()
	known := sn.shared || s.byID[sn.id] == sn
	if s.closed || !known {
		return ErrClosed // deleted, or all is over, while it started
	}
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.shared && sn.ch != nil {
		ch.inherit(sn.ch)
	}
	sn.ch = ch
	if sn.stop == nil {
		sn.stop = time.AfterFunc(s.idle, sn.check)
	} else {
		sn.stop.Reset(s.idle)
	}
	return nil
}

// check stops a channel with nothing to do, and forgets a session whose channel died long ago.
func (sn *session) check() {
	s := sn.s
	s.mu.Lock()
	defer s.mu.Unlock()
	sn.mu.Lock()
	defer sn.mu.Unlock()
	idle := s.idle
	if s.draining {
		idle = 0
	}
	if sn.stop != nil && s.shared && !sn.shared {
		sn.checkShared(idle)
		return
	}
	if sn.ch == nil || sn.stop == nil {
		return
	}
	quiet := sn.ch.idleFor()
	if sn.ch.ended() != nil {
		if idle = min(s.idle, deadKept); quiet < idle {
			sn.stop.Reset(max(idle-quiet, time.Second))
			return
		}
	} else if !sn.ch.retire(idle) {
		sn.stop.Reset(max(idle-quiet, time.Second))
		return
	}
	if s.byID[sn.id] == sn {
		delete(s.byID, sn.id)
	}
	s.goClose(sn.ch)
	sn.ch, sn.stop = nil, nil
}

// checkShared forgets a session of a shared process that has nothing to do. s.mu and sn.mu are held.
func (sn *session) checkShared(idle time.Duration) {
	s, quiet := sn.s, time.Since(sn.used)
	var ch *channel
	if s.one != nil {
		ch = s.one.channel()
	}
	if quiet < idle || ch != nil && ch.serves(sn.id) {
		sn.stop.Reset(max(idle-quiet, time.Second))
		return
	}
	delete(s.byID, sn.id)
	sn.stop = nil
	if ch != nil {
		ch.forget(sn.id)
	}
}

// drop gives up a channel that is of no more use.
func (sn *session) drop(ch *channel, why error) {
	ch.fail(why)
	sn.s.goClose(ch)
}

// discard ends a session that is off the books.
func (sn *session) discard(why error) {
	sn.mu.Lock()
	ch := sn.ch
	sn.ch = nil
	if sn.stop != nil {
		sn.stop.Stop()
		sn.stop = nil
	}
	sn.mu.Unlock()
	if ch != nil {
		sn.drop(ch, why)
	}
}

// goClose closes a channel's connection in the background; close waits for it.
func (s *sessions) goClose(ch *channel) {
	ch.pipe.leave()
	s.closing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*s.cfg.StopGrace)
		defer cancel()
		ch.pipe.close(ctx)
		ch.fail(ErrClosed)
	})
}

// drain stops what has nothing to do now, and the rest as soon as it has not.
func (s *sessions) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for _, sn := range s.allLocked() {
		sn.mu.Lock()
		if sn.stop != nil {
			sn.stop.Reset(time.Millisecond)
		}
		sn.mu.Unlock()
	}
}

func (s *sessions) allLocked() []*session {
	var all []*session
	for _, sn := range s.byID {
		all = append(all, sn)
	}
	for _, sn := range []*session{s.one, s.outside} {
		if sn != nil {
			all = append(all, sn)
		}
	}
	return all
}

// close ends all sessions and waits until their connections are closed, or ctx is done.
func (s *sessions) close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	all := s.allLocked()
	clear(s.byID)
	s.mu.Unlock()
	for _, sn := range all {
		sn.discard(ErrClosed)
	}
	return s.closing.Wait(ctx)
}

// slotsUsed tells how many processes the target has, of this and other configurations.
func (s *sessions) slotsUsed() int {
	if s.slots == nil {
		return 0
	}
	return s.slots.count()
}

// count tells how many sessions there are.
func (s *sessions) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byID)
}

// requestID is the id of a request's body, nil if there is none.
func requestID(r *Request) []byte {
	m, err := mcp.Scan(r.Body, mcp.Limits{Bytes: len(r.Body)})
	if err != nil {
		return nil
	}
	return m.RawID()
}
