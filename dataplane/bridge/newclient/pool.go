package newclient

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// key is who may share a session at a target, and what the session is made for.
type key struct {
	digest string // of the target, with its policies and credentials
	// whose covers the caller, and of its request the header that sessionScope names, those that are forwarded, and those that
	// policies make of it: they may say on whose behalf the target acts.
	whose [sha256.Size]byte
	caps  [sha256.Size]byte // of what the client can, as it wrote it
	level string            // of logs; "": none
}

// pool is the sessions at one target.
type pool struct {
	sessions map[key]*peer      // those that may be joined
	all      map[*peer]struct{} // also those that nobody may join
	of       map[string]int     // of all, how many each caller has; the anonymous one is left out
}

// scope is the key of a request's session. alone: nobody shares it, and the key only says for whom the target is asked.
func (f *stateless) scope(r *upstream.Request, m *mcp.Message, c *client) (k key, alone bool) {
	k = key{digest: f.t.Digest, caps: sha256.Sum256(c.caps)}
	if level := m.Meta.LogLevel.String(); slices.Contains(mcp.LogLevels, level) {
		k.level = level
	}
	var room [256]byte
	whose := field(room[:0], f.caller.Scope.Principal)
	scope := f.t.Config.GetSessionScope()
	switch {
	case scope.GetHeader() != "":
		alone = r.Call.HTTP == nil || r.Call.HTTP.Header.Get(scope.GetHeader()) == ""
		if alone {
			break
		}
		for _, v := range r.Call.HTTP.Header.Values(scope.GetHeader()) {
			whose = field(whose, v)
		}
	case scope.GetShare() == xdsv1.SessionScope_SHARE_NONE, scope == nil && f.caller.Scope.Principal == "":
		alone = true
	}
	for _, name := range f.t.Config.GetForwardHeaders() {
		whose = field(whose, name)
		for _, v := range r.Header[textproto.CanonicalMIMEHeaderKey(name)] {
			whose = field(whose, v)
		}
	}
	if f.t.Policy.PerCaller() {
		call := of("", r.Call)
		whose = field(whose, f.t.Policy.Varying(&call))
	}
	k.whose = sha256.Sum256(whose)
	return k, alone
}

// field appends one of several texts that are hashed together.
func field[T string | []byte](dst []byte, s T) []byte {
	dst = strconv.AppendInt(dst, int64(len(s)), 10)
	return append(append(append(dst, ':'), s...), ',')
}

var (
	// errFull: all sessions of the target are in use.
	errFull = errors.New("too many sessions at the target are in use")
	// errShare: the caller uses as many of them as one may.
	errShare = errors.New("the caller uses too many sessions at the target")
)

// join returns a session for a request, beginning one if there is none to share. Whoever joined leaves. Where the target
// gave an answer that is no session, that is returned instead.
func (f *stateless) join(ctx context.Context, r *upstream.Request, m *mcp.Message, c *client) (*peer, *upstream.Response, error) {
	k, alone := f.scope(r, m, c)
	b := f.b
	b.mu.Lock()
	p := b.pools[f.t.Resource]
	if p == nil {
		p = &pool{sessions: map[key]*peer{}, all: map[*peer]struct{}{}, of: map[string]int{}}
		b.pools[f.t.Resource] = p
	}
	s := p.sessions[k]
	if alone {
		s = nil
	}
	if s == nil {
		if b.closed {
			b.mu.Unlock()
			return nil, nil, &upstream.Error{Op: "begin a session", Target: f.t.Resource, Err: upstream.ErrClosed}
		}
		if err := p.roomLocked(f.caller.Scope.Principal, b.cfg.MaxSessions); err != nil {
			b.mu.Unlock()
			return nil, nil, err
		}
		s = newPeer(f, k, c)
		s.alone = alone
		s.speakAs(r)
		if b.live != nil && !b.live[k.digest] { // it began under what is no longer in force: for this request alone
			s.alone = true
			s.close(errRetired)
		}
		p.addLocked(s)
		b.ending.Go(func() { s.begin(context.WithoutCancel(ctx)) })
	} else {
		s.speakAs(r)
	}
	s.refs++
	s.idle.Stop()
	b.mu.Unlock()

	select {
	case <-s.ready:
	case <-ctx.Done():
		s.leave()
		return nil, nil, &upstream.Error{Op: "begin a session", Target: f.t.Resource, Err: context.Cause(ctx)}
	}
	if s.failed != nil {
		resp, err := s.failed.answer(m.RawID())
		s.leave()
		return nil, resp, err
	}
	return s, nil, nil
}

// addLocked puts a session on the books.
func (p *pool) addLocked(s *peer) {
	p.all[s] = struct{}{}
	if s.whose != "" {
		p.of[s.whose]++
	}
	if !s.alone {
		p.sessions[s.key] = s
	}
}

// roomLocked makes room for one more session of a caller, at the expense of his own where he has his share.
func (p *pool) roomLocked(whose string, most int) error {
	if whose != "" && p.of[whose] >= hold.Share(most, whose) && p.evictLocked(func(s *peer) bool { return s.whose == whose }) == nil {
		return errShare
	}
	if len(p.all) >= most && p.evictLocked(func(*peer) bool { return true }) == nil {
		return errFull
	}
	return nil
}

// evictLocked ends the session that was unused longest, of some, and returns it; nil: there is none.
func (p *pool) evictLocked(which func(*peer) bool) *peer {
	var oldest *peer
	for s := range p.all {
		if s.refs == 0 && s.begun() && (oldest == nil || s.used.Before(oldest.used)) && which(s) {
			oldest = s
		}
	}
	if oldest != nil {
		oldest.endLocked()
	}
	return oldest
}

// makeRoom ends a session that nobody uses where the target has none to spare for another, and reports whether it did: what is only
// kept for who may come back must not keep others out.
func (b *Bridge) makeRoom(ctx context.Context, s *peer, why *failure) bool {
	if !why.full {
		return false
	}
	b.mu.Lock()
	p := b.pools[s.t.Resource]
	var gone *peer
	if p != nil {
		gone = p.evictLocked(func(*peer) bool { return true })
	}
	b.mu.Unlock()
	if gone == nil {
		return false
	}
	select {
	case <-gone.left:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave is the end of what join began.
func (s *peer) leave() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	s.refs--
	s.used = time.Now()
	if s.refs > 0 {
		return
	}
	if s.alone || s.retired || s.over || b.closed || b.live != nil && !b.live[s.key.digest] {
		s.endLocked()
		return
	}
	s.idle.Reset(b.cfg.Idle)
}

// reap ends a session that was idle for long.
func (s *peer) reap() {
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.refs == 0 && time.Since(s.used) >= b.cfg.Idle {
		s.endLocked()
	}
}

// retire lets nobody join any more; the session ends when the last one leaves, and its stream with it: a call that is open
// may be asked there. Who listens is told to go.
func (s *peer) retire() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.retired = true
	s.unlistLocked()
	if s.refs == 0 {
		s.endLocked()
	}
	s.close(errRetired)
}

// lost is retire for a session that the target does not know any more.
func (s *peer) lost() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.over = true
	s.unlistLocked()
	s.close(errLost)
	s.cancel(errLost)
}

// kill ends a session at once, whoever uses it.
func (s *peer) kill() {
	s.b.mu.Lock()
	s.retired = true
	s.dropLocked()
	s.b.mu.Unlock()
	s.close(errRetired)
	for _, k := range s.openCalls() {
		k.cancel()
	}
	s.goEnd()
}

// unlistLocked lets nobody join.
func (s *peer) unlistLocked() {
	if p := s.b.pools[s.t.Resource]; p != nil && p.sessions[s.key] == s {
		delete(p.sessions, s.key)
	}
}

// endLocked ends a session that nobody uses. One that is still being begun counts until it has: who leaves at once must not have
// any number of them.
func (s *peer) endLocked() {
	s.unlistLocked()
	s.idle.Stop()
	if s.begun() {
		s.dropLocked()
	}
	s.goEnd()
}

// begun reports whether the session has begun, or failed to.
func (s *peer) begun() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// dropLocked takes a session off the books.
func (s *peer) dropLocked() {
	s.unlistLocked()
	s.idle.Stop()
	p := s.b.pools[s.t.Resource]
	if p == nil {
		return
	}
	if _, on := p.all[s]; !on {
		return
	}
	delete(p.all, s)
	s.mu.Lock()
	s.b.watched.Give(s.t.Tenant.Name, s.whose, s.watching)
	s.watching, s.dropped = 0, true
	s.mu.Unlock()
	if p.of[s.whose]--; p.of[s.whose] <= 0 {
		delete(p.of, s.whose)
	}
	if len(p.all) == 0 {
		delete(s.b.pools, s.t.Resource)
	}
}

// goEnd says goodbye to the target, once, in the background.
func (s *peer) goEnd() {
	s.ended.Do(func() {
		s.b.ending.Go(func() {
			defer close(s.left)
			<-s.ready // what is being begun cannot be ended yet
			s.close(errRetired)
			s.cancel(nil)
			s.b.mu.Lock()
			s.dropLocked()
			over := s.over
			s.b.mu.Unlock()
			if s.id == "" || over {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), goodbyeTime)
			defer cancel()
			if resp, err := s.do(ctx, http.MethodDelete, "", nil, nil); err == nil {
				_ = resp.Body.Close()
			}
		})
	})
}

// goodbyeTime bounds what is said to a target that nobody waits for.
const goodbyeTime = 5 * time.Second
